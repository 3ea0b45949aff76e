"""Named heads in order of worth, what is measured of them, and what must be reached."""

from bench.cases import PLAIN
from bench.shapes import SPREAD, TRAINED_CLASSES, Shape

WORK, OPTION = "forward_backward", PLAIN


class LinearShape(Shape):
    """Hidden states [N, D] and a head's weight [C, D] of one real model; `size` is (N, D, C)."""

    @property
    def logits_size(self) -> tuple[int, ...]:
        rows, _, cols = self.size
        return (rows, cols)

    @property
    def inputs(self) -> tuple[tuple[tuple[int, ...], float], ...]:
        rows, features, cols = self.size
        return (((rows, features), 1.0), ((cols, features), SPREAD / features**0.5))


SHAPES = {
    shape.name: shape
    for shape in (
        LinearShape("gpt2-head", (4096, 256, 50257), "an odd number of classes, few features"),
        LinearShape("llama2-head", (2048, 512, 32000), "few rows: few chunks to save memory with"),
        LinearShape(
            "llama2-batch", (4096, 512, 32000), "where memory is compared", dtypes=("float32",)
        ),
        *(
            LinearShape(name, size, why, dtypes=("bfloat16",), devices=("cuda",))
            for name, size, why in (
                ("llama3-8b", (8192, 4096, 128256), "products that keep a GPU busy"),
                ("qwen2.5-3b", (8192, 2048, 151936), "a small model: the head is much of it"),
                ("gemma2-2b", (8192, 2304, 256000), "the largest vocabulary in wide use"),
                ("gpt2", (8192, 768, 50257), "an odd number of classes, few features"),
                ("deepseek-v3", (8192, 7168, 129280), "many features"),
                ("llama3-70b", (8192, 8192, 128256), "the most features"),
            )
        ),
        LinearShape(
            "trained",
            (2048, 128, TRAINED_CLASSES),
            "a model trained on text, where most probabilities are next to 0",
            trained=True,
        ),
        LinearShape(
            "trained-batch",
            (16384, 768, TRAINED_CLASSES),
            "the same, wider, and trained for longer",
            dtypes=("bfloat16",),
            devices=("cuda",),
            trained=True,
        ),
        LinearShape(
            "small", (64, 32, 1000), "a rehearsal: measured where it is named only", devices=()
        ),
    )
}

# Time of ours / time of the three bare products, at most: device -> shape -> ratio.
PRODUCTS_BUDGETS = {
    "cpu": {name: 1.15 for name in ("gpt2-head", "llama2-head", "llama2-batch")},
    "cuda": {"llama3-8b": 1.08},
}

# Devices on which no other provider may be faster at these shapes.
FASTEST_ON = ("cpu",)

# Peak memory of ours / that of F.linear + F.cross_entropy, at most: (device, shape, dtype).
MEMORY_BUDGETS = {("cpu", "llama2-batch", "float32"): 1 / 6}
