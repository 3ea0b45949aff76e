"""The steps of bench/progression, executed on the CPU and compared with float64."""

import ctypes
import functools
import re
import shutil
from pathlib import Path

import pytest
import resource_gate
import torch
from cuda_on_host.build import build_host_library, why_not

FOLDER = Path(__file__).resolve().parent.parent / "bench" / "progression"
STEPS = sorted(path.stem for path in FOLDER.glob("*.cu"))
DTYPES = (torch.float32, torch.bfloat16)
FORWARD_ORDER, RANDOM_ORDER = 0, 2

on_host = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@functools.cache
def library(step: str) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build_host_library([FOLDER / f"{step}.cu"])))
    loaded.has_gradient.restype = ctypes.c_bool
    return loaded


def run(step: str, logits: torch.Tensor, target: torch.Tensor) -> tuple[int, torch.Tensor, ...]:
    """The launch's error, the loss and the gradient, NaN where nothing was written."""
    rows, cols = logits.shape
    loss, lse = torch.full((2, rows), torch.nan)
    grad = torch.full_like(logits, torch.nan)
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (logits, target, loss, lse, grad)]
    entry = getattr(library(step), f"run_{str(logits.dtype).removeprefix('torch.')}")
    return entry(*pointers, ctypes.c_int64(rows), ctypes.c_int(cols)), loss, grad


def example(rows: int, cols: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Of four rows one is peaked at its target, one at the first class and one at the last, so that
    a class left out shows; in every other row one class is masked."""
    logits = 2 * torch.randn(rows, cols)
    target = torch.randint(cols, (rows,), dtype=torch.int32)
    for row in range(rows):
        peak = (None, target[row], 0, cols - 1)[row % 4]
        if peak is not None:
            logits[row, peak] = 30
        if cols > 1 and row % 2 == 0:
            logits[row, (target[row] + 1) % cols] = -torch.inf
    return logits.to(dtype), target


def check(step: str, logits: torch.Tensor, target: torch.Tensor) -> None:
    error, loss, grad = run(step, logits, target)
    assert error == 0
    exact = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, target.long(), reduction="none")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    if not library(step).has_gradient():
        return
    expected.sum().backward()
    # the absolute part: what is left of p - 1 where p is 1
    rtol = 1e-5 + torch.finfo(logits.dtype).eps / 2
    torch.testing.assert_close(grad.double(), exact.grad, rtol=rtol, atol=1e-7)


@on_host
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("cols", [1, 7, 1000, 1001, 50257])
@pytest.mark.parametrize("step", STEPS)
def test_against_float64(step: str, cols: int, dtype: torch.dtype) -> None:
    check(step, *example(4 if cols > 10000 else 9, cols, dtype))


@on_host
@pytest.mark.parametrize("step", STEPS)
def test_in_any_order_of_threads(step: str) -> None:
    try:
        for seed in range(3):
            library(step).cuda_on_host_set_order(RANDOM_ORDER, seed)
            check(step, *example(5, 3001, torch.float32))
    finally:
        library(step).cuda_on_host_set_order(FORWARD_ORDER, 1)


@on_host
def test_a_row_too_long_for_a_block() -> None:
    logits, target = example(1, 60001, torch.float32)
    assert run("8_row_in_shared_memory", logits, target)[0] != 0
    check("9_cluster", logits, target)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_nothing_is_spilled() -> None:
    kernels = resource_gate.resources([FOLDER / f"{step}.cu" for step in STEPS], (80, 90))
    assert {kernel.name: kernel.spills for kernel in kernels if kernel.spills} == {}


@pytest.mark.parametrize("step", STEPS)
def test_every_header_has_the_same_lines(step: str) -> None:
    header = (FOLDER / f"{step}.cu").read_text().split("#include")[0]
    found = re.findall(r"^// (Step \d+|Adds|Moves|Bound|Gain|Time)", header, re.M)
    assert found == [f"Step {step.split('_')[0]}", "Adds", "Moves", "Bound", "Gain", "Time"]


def test_the_table_names_the_steps() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.cu\) \|", (FOLDER / "README.md").read_text(), re.M)
    assert rows == [(name, name) for name in STEPS]
    assert [int(name.split("_")[0]) for name in STEPS] == list(range(1, len(STEPS) + 1))
