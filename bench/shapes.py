"""Named shapes, in order of worth: a run with too little time leaves out the last ones."""

import math
from dataclasses import dataclass

SPREAD = 3.0  # standard deviation of the logits: rows far from uniform, as in training


@dataclass(frozen=True)
class Shape:
    """Logits of one real model head, classes in dimension 1."""

    name: str
    size: tuple[int, ...]  # [N, C, d1, ...]
    why: str
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    every_option: bool = False  # measure every option here, elsewhere only the plain loss
    devices: tuple[str, ...] = ("cpu",)  # where it is measured unless shapes are named

    @property
    def logits_size(self) -> tuple[int, ...]:
        return self.size

    @property
    def inputs(self) -> tuple[tuple[tuple[int, ...], float], ...]:
        """Size and standard deviation of each tensor whose gradient is wanted."""
        return ((self.logits_size, SPREAD),)

    @property
    def rows(self) -> int:
        return math.prod(self.logits_size) // self.cols

    @property
    def cols(self) -> int:
        return self.logits_size[1]

    @property
    def target_size(self) -> tuple[int, ...]:
        return self.logits_size[:1] + self.logits_size[2:]

    @property
    def label(self) -> str:
        return "x".join(map(str, self.size))


def _head(
    rows: int, cols: int, why: str, dtypes: tuple[str, ...] = ("bfloat16", "float32")
) -> Shape:
    """About 1 GiB of bfloat16 logits or more: the work of a GPU's memory, not of its caches."""
    return Shape(f"head-{cols}", (rows, cols), why, dtypes, devices=("cuda",))


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama2", (1024, 32000), "a language model's head", every_option=True),
        Shape(
            "small",
            (64, 10),
            "a digits classifier: nothing but the latency of a call",
            dtypes=("float32",),
            every_option=True,
            devices=("cpu", "cuda"),
        ),
        Shape("imagenet", (8192, 1000), "many short rows", every_option=True),
        Shape(
            "segmentation",
            (8, 21, 512, 512),
            "classes in the middle: neighbouring pixels, not neighbouring classes, share a line",
            dtypes=("float32",),
            every_option=True,
            devices=("cpu", "cuda"),
        ),
        Shape("gpt2", (1024, 50257), "an odd number of classes: no row starts aligned"),
        Shape("llama3", (256, 128256), "rows of half a megabyte"),
        Shape("llama3-decode", (16, 128256), "few rows"),
        Shape(
            "gemma-decode",
            (2, 256000),
            "two rows: the threads must share a row, or most of them wait",
        ),
        Shape("gemma", (128, 256000), "the largest vocabulary in wide use"),
        Shape("qwen", (216, 151936), "the vocabulary of Qwen 2.5"),
        Shape("tokens-64k", (512, 65536), "a power of two: rows that meet in the same cache sets"),
        Shape("characters", (8192, 4096), "rows that fit the L1 cache"),
        _head(8192, 128256, "a batch of Llama 3", dtypes=("bfloat16", "float32", "float16")),
        _head(10240, 50257, "an odd number of classes: no row starts aligned"),
        _head(10240, 50264, "its next multiple of 8"),
        _head(524288, 1000, "many short rows"),
        _head(2048, 256000, "the largest vocabulary in wide use"),
        _head(16384, 32000, "rows that a block reads"),
        _head(4096, 151936, "the vocabulary of Qwen 2.5"),
        _head(131072, 4096, "rows that a block holds"),
        Shape(
            "llama2-batch",
            (8192, 32000),
            "where options are compared",
            dtypes=("bfloat16", "float32", "float16"),
            every_option=True,
            devices=("cuda",),
        ),
        Shape("imagenet-batch", (1024, 1000), "a few microseconds of work", devices=("cuda",)),
    )
}
