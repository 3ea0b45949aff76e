"""The gradient of every case under its options, and what of it is known exactly."""

from dataclasses import replace

import pytest
import torch
from accuracy import check, evaluate
from cases import (
    BF16,
    BY_NAME,
    F16,
    F32,
    F64,
    OPTIONS,
    Case,
    Option,
    all_problems,
    make_problem,
    problem_id,
)

import torchce_cuda as ce
from torchce_cuda.reference import cross_entropy as reference


@pytest.mark.parametrize(("case", "dtype", "option"), all_problems(), ids=problem_id)
def test_gradient(case: Case, dtype: torch.dtype, option: Option, device: torch.device) -> None:
    problem = make_problem(case, dtype, option, device)
    check(evaluate(ce.cross_entropy, problem), problem)


PROBABILITY_CASES = ("probabilities", "one_hot", "soft_image", "soft_unbatched")


@pytest.mark.parametrize(
    ("case", "dtype", "option"), all_problems(*PROBABILITY_CASES), ids=problem_id
)
def test_gradient_to_probabilities_and_weight(
    case: Case, dtype: torch.dtype, option: Option, device: torch.device
) -> None:
    problem = make_problem(case, dtype, option, device)
    wrt = ("input", "target") if problem.weight is None else ("input", "target", "weight")
    check(evaluate(ce.cross_entropy, problem, wrt), problem)


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=problem_id)
@pytest.mark.parametrize("name", ["masked", "masked_image"])
def test_masked_logits_get_exactly_zero(
    name: str, dtype: torch.dtype, device: torch.device
) -> None:
    for option in ("mean", "none", "weight", "focal_half", "focal_real", "z_loss"):
        problem = make_problem(BY_NAME[name], dtype, OPTIONS[option], device)
        grad = evaluate(ce.cross_entropy, problem)["grad_input"]
        assert (grad[problem.input == -torch.inf] == 0).all()


@pytest.mark.parametrize("name", ["ten_classes", "image", "no_softmax_ignored", "all_ignored"])
def test_ignored_rows_get_exactly_zero(name: str, device: torch.device) -> None:
    case = BY_NAME[name]
    for dtype in case.dtypes:
        for option in case.options:
            problem = make_problem(case, dtype, OPTIONS[option], device)
            grad = evaluate(ce.cross_entropy, problem)["grad_input"].movedim(case.class_dim, -1)
            assert (grad[problem.target == case.ignore_index] == 0).all()


@pytest.mark.parametrize("gap", [12.0, 17.0, 40.0, 100.0, 2e4])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.7])
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=problem_id)
def test_focal_gradient_vanishes_as_p_approaches_one(
    gap: float, gamma: float, dtype: torch.dtype, device: torch.device
) -> None:
    # (1 - p)^(gamma - 1) is infinite at p = 1 where gamma < 1, and its factor is 0.
    logits = torch.tensor([[gap, 0.0, 0.0]], dtype=dtype, device=device, requires_grad=True)
    ce.cross_entropy(logits, torch.tensor([0], device=device), gamma=gamma).backward()
    assert logits.grad.abs().max() <= 1e-4


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_float16_gradient_under_a_loss_scaler(reduction: str, device: torch.device) -> None:
    """Multiplied by 65536 before it is rounded: a gradient of 1e-8 survives, one of 1 is inf."""
    logits = torch.zeros(64, 1000, dtype=F16, device=device)
    logits[:, 0] = 12.0
    target = torch.zeros(64, dtype=torch.int64, device=device)
    exact = logits.double().requires_grad_()
    logits.requires_grad_()
    for x in (exact, logits):
        loss = ce.cross_entropy(x, target, reduction=reduction) / 64
        loss.backward(torch.full_like(loss, 65536.0))
    assert logits.grad.isfinite().all()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-3, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [F64, F32], ids=problem_id)
def test_peaked_probabilities(gamma: float, dtype: torch.dtype, device: torch.device) -> None:
    """Without a target class to set apart, 1 - p is as exact as the 1 it is subtracted from."""
    gap = torch.tensor([5.0, 9.0, 14.0, 25.0, 60.0, 1e3], device=device)
    logits = torch.randn(6, 33, device=device)
    logits[:, 4] = gap
    target = torch.zeros(6, 33, device=device)
    target[:, 4] = 1
    results = []
    for function, x in (ce.cross_entropy, logits.to(dtype)), (reference, logits.double()):
        x.requires_grad_()
        loss = function(x, target.to(x.dtype), gamma=gamma, reduction="sum")
        loss.backward()
        results += [loss.detach().double(), x.grad.double()]
    loss, grad, exact_loss, exact_grad = results
    atol = 20 * torch.finfo(dtype).eps ** min(1, gamma or 1)
    torch.testing.assert_close(loss, exact_loss, rtol=1e-3, atol=atol)
    torch.testing.assert_close(grad, exact_grad, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("name", ["ten_classes", "image", "probabilities", "peaked"])
def test_gradient_is_linear_in_the_upstream_gradient(name: str, device: torch.device) -> None:
    """Each row has its own factor: by a power of two, gradients change by exactly that."""
    problem = make_problem(BY_NAME[name], F32, OPTIONS["none"], device)
    factor = torch.tensor([-2.0, 0.5, 4.0], device=device, dtype=F64)
    factor = factor.repeat(problem.grad_loss.numel() // 3 + 1)[: problem.grad_loss.numel()]
    factor = factor.view_as(problem.grad_loss)
    plain = evaluate(ce.cross_entropy, problem)["grad_input"]
    scaled = evaluate(ce.cross_entropy, replace(problem, grad_loss=factor * problem.grad_loss))[
        "grad_input"
    ]
    assert torch.equal(scaled, plain * factor.unsqueeze(problem.case.class_dim).float())
