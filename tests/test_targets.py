"""Class indices that are out of range where kernels run without anybody waiting for them."""

import pytest
import torch

import torchce_cuda as ce
from torchce_cuda import _ops

BAD = [-1, 2**32, 2**63 - 1, -(2**63)]


@pytest.fixture(autouse=True)
def nobody_waits(device: torch.device) -> None:
    on_host = "cuda_on_host" in ce.__file__  # the CUDA backend behind the operators of the CPU
    if device.type == "cpu" and not on_host:
        pytest.skip("on the CPU a bad target raises at once, always (test_errors.py)")
    ce.check_targets(False)


def raise_what_is_pending(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    ce.cross_entropy(torch.zeros(1, 2, device=device), torch.zeros(1, dtype=int, device=device))


@pytest.mark.parametrize("shape", [(5, 10), (5, 1000), (5, 5000), (5, 40_000), (5, 21, 3)], ids=str)
@pytest.mark.parametrize("options", [{}, {"gamma": 2.0, "label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_its_row_becomes_nan_and_a_later_call_raises(
    shape: tuple[int, ...], options: dict, inplace: bool, device: torch.device
) -> None:
    logits = torch.randn(shape, device=device)
    good = torch.randint(shape[1], (shape[0], *shape[2:]), device=device)
    weight = torch.rand(shape[1], device=device)
    for reduction, bad in (("none", shape[1]), *(("none", index) for index in BAD), ("sum", -7)):
        target = good.clone()
        target[2] = bad
        arguments = {"reduction": reduction, **options}
        results = []
        for indices in (good, target):
            leaf = logits.clone().requires_grad_()
            loss = ce.cross_entropy(leaf * 1, indices, weight, inplace=inplace, **arguments)
            # the gradient before anything of ours is called again, which would raise
            results.append((loss.detach(), loss.sum(), leaf))
        row_of_bad = torch.zeros_like(good, dtype=torch.bool)
        row_of_bad[2] = True
        (loss, _, _), (nan_loss, _, _) = results
        if reduction == "none":
            assert torch.equal(nan_loss.isnan(), row_of_bad)
            assert torch.equal(nan_loss[~row_of_bad], loss[~row_of_bad])
        else:
            assert nan_loss.isnan()
        with pytest.raises(IndexError, match=rf"Target {bad} is out of bounds: row \d+ of the"):
            raise_what_is_pending(device)
        raise_what_is_pending(device)  # once: the next calls go on

        (grad,) = torch.autograd.grad(results[0][1], results[0][2])
        (nan_grad,) = torch.autograd.grad(results[1][1], results[1][2])
        nan_rows = nan_grad.isnan().movedim(1, -1)
        assert torch.equal(nan_rows, row_of_bad.unsqueeze(-1).expand_as(nan_rows))
        assert torch.equal(nan_grad.movedim(1, -1)[~row_of_bad], grad.movedim(1, -1)[~row_of_bad])


def test_the_row_is_named(device: torch.device) -> None:
    target = torch.zeros(1000, dtype=torch.int32, device=device)
    target[345] = 77
    ce.cross_entropy(torch.randn(1000, 30, device=device), target)
    with pytest.raises(IndexError, match="Target 77 is out of bounds: row 345 of the target of an"):
        raise_what_is_pending(device)


def test_a_call_with_many_bad_rows_is_told_once(device: torch.device) -> None:
    """On a GPU it is still finding them when the first has been found."""
    rows = 500_000 if device.type == "cuda" else 50
    logits = torch.randn(rows, 100, device=device)
    ce.cross_entropy(logits, torch.full((rows,), 100, device=device))
    good = torch.zeros(1, 2, device=device), torch.zeros(1, dtype=int, device=device)
    with pytest.raises(IndexError, match="Target 100 is out of bounds"):
        for _ in range(100_000):
            ce.cross_entropy(*good)
    raise_what_is_pending(device)


def test_the_row_of_a_problem_in_chunks_is_that_of_the_whole(device: torch.device) -> None:
    """Raised by the same call where the device is fast enough, else by a later one."""
    target = torch.zeros(7, dtype=torch.int64, device=device)
    target[5] = 77
    with pytest.raises(IndexError, match="Target 77 is out of bounds: row 5 of the target of an"):
        ce.linear_cross_entropy(
            torch.randn(7, 4, device=device),
            torch.randn(30, 4, device=device),
            target,
            chunk_rows=2,
        )
        raise_what_is_pending(device)
    ce.check_targets()  # and no chunk says so again, with a row of its own


@pytest.mark.parametrize("seen", [False, True])
def test_a_part_whose_targets_were_seen_tells_nobody(seen: bool, device: torch.device) -> None:
    """Its kernels may be on their way when the report on the whole has been raised already."""
    logits = torch.randn(4, 300, device=device)
    target = torch.tensor([0, 300, 1, 2], device=device)
    for call in (_ops.forward, _ops.forward_backward_):
        loss = call(logits.clone(), target, targets_seen=seen)
        loss = loss[0] if isinstance(loss, tuple) else loss
        assert loss.isnan()
        if seen:
            ce.check_targets()
        else:
            with pytest.raises(IndexError, match="Target 300 is out of bounds: row 1 of the"):
                ce.check_targets()


@pytest.mark.parametrize("enabled", [None, False, True])
def test_after_the_last_call_somebody_can_ask(enabled: bool | None, device: torch.device) -> None:
    ce.cross_entropy(torch.randn(4, 30, device=device), torch.tensor([0, 1, 30, 2], device=device))
    with pytest.raises(IndexError, match="Target 30 is out of bounds: row 2 of the target of an"):
        ce.check_targets(enabled)
    ce.check_targets()  # told once

    # raised or not, the mode is what was asked for
    logits, target = torch.randn(1, 2, device=device), torch.tensor([2], device=device)
    if enabled:
        with pytest.raises(IndexError, match="row 0 of target, allowed are 0 to 1"):
            ce.cross_entropy(logits, target)
    else:
        ce.cross_entropy(logits, target)
        with pytest.raises(IndexError, match="row 0 of the target of an earlier call"):
            ce.check_targets()


def test_a_call_that_checks_touches_nothing(device: torch.device) -> None:
    ce.check_targets(True)
    logits = torch.randn(4, 30, device=device, requires_grad=True) * 1
    before = logits.detach().clone()
    with pytest.raises(IndexError, match="Target 30 is out of bounds: row 3 of target, allowed"):
        ce.cross_entropy(logits, torch.tensor([0, 1, 2, 30], device=device), inplace=True)
    assert torch.equal(logits, before)
