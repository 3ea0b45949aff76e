"""Memory beyond inputs and outputs, measured: forward O(rows), backward the gradient, inplace none;
of the sigmoid losses forward none.

A process of its own measures (`python tests/test_memory.py`), where freed memory returns to the
system at once and nothing else runs. The kernel keeps the high-water mark of the resident set.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import torchce_cuda as ce

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs the Linux kernel's bookkeeping"
)

SHAPES = {"rows": (256, 32_000), "one row": (1, 8_000_000), "positions": (1, 64, 512, 384)}
ELEMENTS = (512, 16_384)  # of the sigmoid losses
DTYPES = {"float32": torch.float32, "float16": torch.float16}  # with inplace, two different routes
OPTIONS = {
    "plain": {},
    "everything": {"gamma": 2.0, "label_smoothing": 0.1, "logit_softcap": 30.0, "z_loss": 1e-3},
}
MEBIBYTE = 2**20
# Buffers of the threads, and pages of 2 MiB at both ends of a block.
SLACK = 4 * MEBIBYTE
# glibc raises its threshold with every large block it frees
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
BYTES_PER_ROW = 24  # at most four numbers for backward, the loss


def growth(run: Callable[[], object]) -> int:
    """Bytes by which the resident set grows at most while `run` runs, with what it returns."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to the present size
    before = status("VmRSS")
    result = run()
    peak = status("VmHWM")
    del result
    return peak - before


def status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def copying_cross_entropy(logits: Tensor, target: Tensor, **options) -> Tensor:
    """What the check has to find: one copy of the logits, which is gone when the call returns."""
    copy = logits + 0
    return ce.cross_entropy(logits, target, **options) + 0 * copy.view(-1)[0].detach()


class Produce(torch.autograd.Function):
    """Makes logits that are no leaf, and drops their gradient."""

    @staticmethod
    def forward(ctx, source: Tensor, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return torch.zeros(()), None


def measure(shape: tuple[int, ...], dtype: torch.dtype, options: dict) -> dict[str, int]:
    logits = torch.full(shape, 0.5, dtype=dtype)
    target = torch.full((shape[0], *shape[2:]), 1)
    leaf = logits.clone().requires_grad_()
    source = torch.zeros((), requires_grad=True)

    def forward() -> Tensor:
        return ce.cross_entropy(logits, target, **options)

    def forward_of_leaf() -> Tensor:
        return ce.cross_entropy(leaf, target, **options)

    def copying_forward() -> Tensor:
        return copying_cross_entropy(logits, target, **options)

    def backward_of(loss: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(loss, leaf)

    def one_pass() -> None:
        ce.cross_entropy(produced, target, inplace=True, **options).backward()

    results = {}
    for _ in range(2):  # once to load code and start threads
        results["forward"] = growth(forward)
        results["forward, recorded"] = growth(forward_of_leaf)
        results["forward, copying"] = growth(copying_forward)
        results["backward"] = growth(backward_of(forward_of_leaf()))
        produced = Produce.apply(source, logits)
        results["inplace"] = growth(one_pass)
    return results


def measure_sigmoid() -> dict[str, int]:
    logits, labels = torch.full(ELEMENTS, 0.5), torch.ones(ELEMENTS, dtype=torch.bool)
    pos_weight = torch.rand(ELEMENTS[1])
    leaf = logits.clone().requires_grad_()

    def forward(input: Tensor) -> Tensor:
        return ce.sigmoid_focal_loss(input, labels, alpha=0.25, pos_weight=pos_weight)

    results = {}
    for _ in range(2):  # once to load code and start threads
        results["forward"] = growth(lambda: forward(logits))
        results["forward, recorded"] = growth(lambda: forward(leaf))
        results["backward"] = growth(partial(torch.autograd.grad, forward(leaf), leaf))
    return results


def main() -> None:
    torch.set_num_threads(2)
    results = {"sigmoid": measure_sigmoid()} | {
        f"{shape}, {dtype}, {options}": measure(SHAPES[shape], DTYPES[dtype], OPTIONS[options])
        for shape in SHAPES
        for dtype in DTYPES
        for options in OPTIONS
    }
    print(json.dumps(results))


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, int]]:
    finished = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, env=os.environ | RETURN_FREED
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_peak(shape: str, dtype: str, options: str, measured: dict) -> None:
    peak = measured[f"{shape}, {dtype}, {options}"]
    sizes = SHAPES[shape]
    logits = torch.Size(sizes).numel() * DTYPES[dtype].itemsize
    rows = torch.Size(sizes).numel() // sizes[1]
    allowed = rows * BYTES_PER_ROW + SLACK
    assert logits > 1.5 * allowed  # or the next line would prove nothing
    assert peak["forward, copying"] > allowed
    assert peak["forward"] <= allowed
    assert peak["forward, recorded"] <= allowed
    assert peak["inplace"] <= allowed
    assert logits - SLACK <= peak["backward"] <= logits + allowed


@pytest.mark.slow
def test_peak_of_sigmoid_losses(measured: dict) -> None:
    """Bool labels and a weight per class are read where they lie."""
    peak, logits = measured["sigmoid"], 4 * ELEMENTS[0] * ELEMENTS[1]
    assert peak["forward"] <= SLACK < logits / 4
    assert peak["forward, recorded"] <= SLACK
    assert logits - SLACK <= peak["backward"] <= logits + SLACK


if __name__ == "__main__":
    main()
