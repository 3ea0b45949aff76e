"""Batches of classifiers that take less time than what leads to them."""

from bench.cases import PLAIN
from bench.shapes import Shape

SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name, size, why, ("float32",), (PLAIN, "weight"), ("cpu", "cuda"))
        for name, size, why in (
            ("digits", (64, 10), "nothing but the latency of a call"),
            ("cifar10", (256, 10), "the same, of a larger batch"),
            ("cifar100", (128, 100), "a hundred classes"),
            ("cifar100-batch", (1024, 100), "the same, of a larger batch"),
            ("imagenet", (1024, 1000), "4 MB: the largest whose gradient a cache holds"),
            ("imagenet-batch", (4096, 1000), "16 MB: where the work begins to show"),
        )
    )
}
