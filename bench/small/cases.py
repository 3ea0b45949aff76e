"""Batches of classifiers that take less time than what leads to them."""

from bench.cases import PLAIN
from bench.shapes import Shape

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("x".join(map(str, size)), size, why, ("float32",), (PLAIN, "weight"), ("cpu", "cuda"))
        for size, why in (
            ((64, 10), "nothing but the latency of a call"),
            ((256, 10), "the same, of a larger batch"),
            ((128, 100), "a hundred classes"),
            ((1024, 100), "the same, of a larger batch"),
            ((1024, 1000), "4 MB: logits and gradient fit a cache"),
            ((4096, 1000), "16 MB: where the work begins to show"),
        )
    )
}
