"""The same bits always: in each run, on any number of threads, whatever the other rows are."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from accuracy import assert_same_bits, evaluate
from cases import BF16, CASES, F16, F32, OPTIONS, Case, make_problem, problem_id
from torch import Tensor

import torchce_cuda as ce

OPTION_SETS = {
    "plain": {},
    "focal": {"gamma": 2.0},
    "smoothing": {"label_smoothing": 0.1},
    "focal+smoothing": {"gamma": 0.5, "label_smoothing": 0.1, "logit_softcap": 20.0},
    "series": {"gamma": 2.0, "label_smoothing": 0.1},
}


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def loss_and_gradient(logits: Tensor, target: Tensor, **arguments) -> tuple[Tensor, Tensor]:
    """Row by row, so that nothing but the row decides."""
    logits = logits.detach().requires_grad_()
    loss = ce.cross_entropy(logits, target, reduction="none", **arguments)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), grad


@pytest.mark.parametrize("case", CASES, ids=problem_id)
def test_runs_and_threads_give_the_same_bits(case: Case, device: torch.device) -> None:
    problem = make_problem(case, case.dtypes[-1], OPTIONS[case.options[-1]], device)
    with threads(2):
        first = evaluate(ce.cross_entropy, problem)
        again = evaluate(ce.cross_entropy, problem)
    with threads(1):
        alone = evaluate(ce.cross_entropy, problem)
    for name, value in first.items():
        assert_same_bits(value, again[name])
        assert_same_bits(value, alone[name])


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=problem_id)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_are_split_the_same_way(
    dtype: torch.dtype, reduction: str, device: torch.device
) -> None:
    logits = torch.randn(4099, 7, device=device).to(dtype)
    target = torch.randint(7, (4099,), device=device)
    weight = torch.rand(7, device=device).to(dtype)
    losses = []
    for count in (1, 2, 3):
        with threads(count):
            losses.append(ce.cross_entropy(logits, target, weight, reduction=reduction))
    assert_same_bits(losses[0], losses[1])
    assert_same_bits(losses[0], losses[2])


@pytest.mark.parametrize("num_classes", [10, 1000, 50257])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=problem_id)
@pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS)
def test_a_row_alone_and_among_others(
    num_classes: int, dtype: torch.dtype, options: dict, device: torch.device
) -> None:
    """Batch invariance, also for rows that start at another alignment."""
    rows = 9 if num_classes > 1000 else 33
    logits = 3 * torch.randn(rows, num_classes, device=device).to(dtype)
    target = torch.randint(num_classes, (rows,), device=device)
    losses, grads = loss_and_gradient(logits, target, **options)
    for row in (0, 1, rows // 2, rows - 1):
        for part in (slice(row, row + 1), slice(row, row + 3), slice(0, row + 1)):
            loss, grad = loss_and_gradient(logits[part], target[part], **options)
            at = row - part.start
            assert_same_bits(loss[at], losses[row])
            assert_same_bits(grad[at], grads[row])
        for offset in (1, 3):
            shifted = torch.empty(num_classes + offset, dtype=dtype, device=device)[offset:]
            shifted.copy_(logits[row])
            loss, grad = loss_and_gradient(shifted, target[row], **options)
            assert_same_bits(loss, losses[row])
            assert_same_bits(grad, grads[row])


@pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS)
def test_few_long_rows_and_many(options: dict, device: torch.device) -> None:
    """Few are shared out in parts: on a CPU over threads, on a GPU over blocks.

    There rows are many if they are twice as many as multiprocessors; those of 132 are on the host.
    """
    on_gpu = device.type == "cuda"
    rows = 2 * (torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 132)
    logits = 3 * torch.randn(rows, 16391, device=device)
    target = torch.randint(16391, (rows,), device=device)
    many = ce.cross_entropy(logits, target, reduction="none", z_loss=1e-3, **options)
    few = ce.cross_entropy(logits[7:9], target[7:9], reduction="none", z_loss=1e-3, **options)
    assert_same_bits(few, many[7:9])


@pytest.mark.parametrize("num_classes", [10, 1000, 50257])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=problem_id)
@pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS)
def test_a_position_alone_and_among_others(
    num_classes: int, dtype: torch.dtype, options: dict, device: torch.device
) -> None:
    """The same where the classes are strided: (N, C, d1)."""
    positions = 5 if num_classes > 1000 else 37
    logits = 3 * torch.randn(2, num_classes, positions, device=device).to(dtype)
    target = torch.randint(num_classes, (2, positions), device=device)
    losses, grads = loss_and_gradient(logits, target, **options)
    for start, stop in ((0, positions - 1), (1, positions), (2, 4)):
        part = logits[1:, :, start:stop]
        for x in (part, part.contiguous()):
            loss, grad = loss_and_gradient(x, target[1:, start:stop], **options)
            assert_same_bits(loss, losses[1:, start:stop])
            assert_same_bits(grad, grads[1:, :, start:stop])


def test_probabilities_are_batch_invariant(device: torch.device) -> None:
    for shape in ((17, 1000), (2, 21, 37)):
        logits = torch.randn(shape, device=device)
        target = torch.rand(shape, device=device)
        losses, grads = loss_and_gradient(logits, target, gamma=2.0)
        loss, grad = loss_and_gradient(logits[1:2], target[1:2], gamma=2.0)
        assert_same_bits(loss, losses[1:2])
        assert_same_bits(grad, grads[1:2])


def test_other_rows_may_hold_anything(device: torch.device) -> None:
    logits = torch.randn(5, 129, device=device)
    target = torch.randint(129, (5,), device=device)
    losses, grads = loss_and_gradient(logits, target)
    for value in (float("nan"), float("inf"), -float("inf"), 1e30):
        disturbed = logits.clone()
        disturbed[[0, 2, 4]] = value
        loss, grad = loss_and_gradient(disturbed, target)
        assert_same_bits(loss[1::2], losses[1::2])
        assert_same_bits(grad[1::2], grads[1::2])


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=problem_id)
@pytest.mark.parametrize("shape", [(33, 129), (2, 21, 5, 4)], ids=str)
def test_ignored_rows_are_plus_zero(
    dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    logits = torch.randn(shape, device=device).to(dtype)
    target = torch.randint(21, (shape[0], *shape[2:]), device=device)
    target[torch.rand(target.shape) < 0.5] = -100
    for options in OPTION_SETS.values():
        loss, grad = loss_and_gradient(logits, target, **options)
        ignored = grad.movedim(1, -1)[target == -100]
        assert_same_bits(ignored, torch.zeros_like(ignored))
        assert_same_bits(loss[target == -100], torch.zeros_like(loss[target == -100]))


def test_under_deterministic_algorithms(device: torch.device) -> None:
    logits, target = torch.randn(8, 21, 5, device=device), torch.randint(21, (8, 5), device=device)
    expected = loss_and_gradient(logits, target, gamma=2.0)
    torch.use_deterministic_algorithms(True)
    try:
        for value, reference in zip(
            loss_and_gradient(logits, target, gamma=2.0), expected, strict=True
        ):
            assert_same_bits(value, reference)
    finally:
        torch.use_deterministic_algorithms(False)
