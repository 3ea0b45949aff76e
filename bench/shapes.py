"""Named shapes, in order of worth: a run with too little time leaves out the last ones."""

import math
from dataclasses import dataclass

import torch

from bench.cases import OPTIONS, PLAIN

EVERY_OPTION = tuple(OPTIONS)
# Rare classes and hard positions are what segmentation weights and focuses.
SEGMENTATION_OPTIONS = (PLAIN, "weight", "focal", "weight+focal", "smoothing")

SPREAD = 3.0  # standard deviation of the logits: rows far from uniform, as in training

# What not everybody can be given: dimensions beyond [N, C]; rows that do not all begin at a
# multiple of 16 bytes.
POSITIONS, ODD_ROWS = "positions", "odd rows"


@dataclass(frozen=True)
class Shape:
    """Logits of one real model head, classes in dimension 1."""

    name: str
    size: tuple[int, ...]  # [N, C, d1, ...]
    why: str
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    options: tuple[str, ...] = (PLAIN,)  # what is measured unless options are named
    devices: tuple[str, ...] = ("cpu",)  # where it is measured unless shapes are named
    trained: bool = False  # logits of a trained model, not random ones: see trained.py

    @property
    def traits(self) -> frozenset[str]:
        """What not everybody can be given."""
        has = {POSITIONS: len(self.logits_size) > 2, ODD_ROWS: self.cols % 8 != 0}
        return frozenset(name for name, present in has.items() if present)

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

    def draw_target(self, generator: torch.Generator) -> torch.Tensor:
        """Random class indices."""
        here = {"generator": generator, "device": generator.device}
        return torch.randint(self.cols, self.target_size, **here)

    @property
    def label(self) -> str:
        return "x".join(map(str, self.size))


def _head(rows: int, cols: int, why: str) -> Shape:
    """About 1 GiB of bfloat16 logits or more: the work of a GPU's memory, not of its caches."""
    return Shape(f"head-{cols}", (rows, cols), why, ALL_DTYPES, devices=("cuda",))


def _trained(name: str, rows: int, dtypes: tuple[str, ...], device: str) -> Shape:
    why = "logits of a model trained on text, where most probabilities are next to 0"
    return Shape(name, (rows, TRAINED_CLASSES), why, dtypes, devices=(device,), trained=True)


ALL_DTYPES = ("bfloat16", "float32", "float16")
TRAINED_CLASSES = 32768

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama2", (1024, 32000), "a language model's head", options=EVERY_OPTION),
        Shape(
            "small",
            (64, 10),
            "a digits classifier: nothing but the latency of a call",
            dtypes=("float32",),
            options=EVERY_OPTION,
            devices=("cpu", "cuda"),
        ),
        Shape("imagenet", (8192, 1000), "many short rows", options=EVERY_OPTION),
        Shape(
            "segmentation",
            (8, 21, 512, 512),
            "classes in the middle: neighbouring pixels, not neighbouring classes, share a line",
            dtypes=("float32",),
            options=SEGMENTATION_OPTIONS,
            devices=("cpu", "cuda"),
        ),
        Shape(
            "cityscapes",
            (2, 19, 512, 1024),
            "street scenes: few large images",
            dtypes=("float32",),
            options=SEGMENTATION_OPTIONS,
            devices=("cpu", "cuda"),
        ),
        Shape(
            "volume",
            (1, 4, 96, 96, 96),
            "a medical scan: four classes at each voxel",
            dtypes=("float32",),
            options=SEGMENTATION_OPTIONS,
            devices=("cpu", "cuda"),
        ),
        Shape("gpt2", (1024, 50257), "an odd number of classes: no row starts aligned"),
        _trained("trained", 1024, ("float32", "bfloat16"), "cpu"),
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
        _head(8192, 128256, "a batch of Llama 3"),
        _head(10240, 50257, "an odd number of classes: no row starts aligned"),
        _head(10240, 50264, "its next multiple of 8"),
        _head(524288, 1000, "many short rows"),
        _head(2048, 256000, "the largest vocabulary in wide use"),
        _head(16384, 32000, "rows that a block reads"),
        _head(4096, 151936, "the vocabulary of Qwen 2.5"),
        _head(131072, 4096, "rows that a block holds"),
        _head(8192, 65536, "a power of two: rows that meet in the same cache sets"),
        Shape(
            "llama2-batch",
            (8192, 32000),
            "where options are compared",
            ALL_DTYPES,
            options=EVERY_OPTION,
            devices=("cuda",),
        ),
        Shape(
            "llama3-batch",
            (8192, 128256),
            "the same, of a large vocabulary",
            dtypes=("bfloat16",),
            options=(PLAIN, "focal", "smoothing", "softcap", "focal+smoothing"),
            devices=("cuda",),
        ),
        _trained("trained-batch", 16384, ALL_DTYPES, "cuda"),
        Shape("imagenet-batch", (1024, 1000), "a few microseconds of work", devices=("cuda",)),
    )
}

# Classes in the middle, neighbouring positions side by side: what `segmentation` measures.
SEGMENTATION = {name: shape for name, shape in SHAPES.items() if len(shape.size) > 2}
