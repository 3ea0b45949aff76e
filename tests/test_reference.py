"""The specification itself: against PyTorch where PyTorch has it, against 50 digits elsewhere."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from accuracy import TORCH_ARGUMENTS, evaluate, exact_result
from cases import CASES, F32, F64, OPTIONS, Case, make_problem, problem_id
from mpmath import mp
from torch import Tensor
from torch.func import grad, vmap

from torchce_cuda import reference

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("case", [case for case in CASES if case.num_classes], ids=problem_id)
def test_as_pytorch(case: Case) -> None:
    """Values, gradients, and the places of NaN and inf."""
    if case.name in ("one_hot_masked", "no_softmax_ignored"):
        pytest.skip("NaN in PyTorch: the loss of 0 * inf, the gradient of an ignored row")
    for name in case.options:
        problem = make_problem(case, F64, OPTIONS[name])
        if not problem.arguments.keys() <= TORCH_ARGUMENTS:
            continue
        if case.has_class_indices:
            problem = replace(problem, target=problem.target.long())
        ours, theirs = (evaluate(f, problem) for f in (reference.cross_entropy, F.cross_entropy))
        for part, value in ours.items():
            torch.testing.assert_close(
                value, theirs[part], rtol=1e-11, atol=1e-13, equal_nan=True, msg=f"{part}, {name}"
            )


def true_row(
    logits: Tensor, distribution: Tensor, weight: Tensor, arguments: dict
) -> tuple[float, list[float]]:
    """Loss and gradient of one row to 50 digits, by the formulas and not by differentiation."""
    scale, cap = arguments.get("logit_scale", 1.0), arguments.get("logit_softcap")
    gamma, z_loss = arguments.get("gamma", 0.0), arguments.get("z_loss", 0.0)
    x = [mp.mpf(v) * scale for v in logits.tolist()]
    z = x if cap is None else [cap * mp.tanh(v / cap) for v in x]
    e = [mp.exp(v) for v in z]
    total = mp.fsum(e)
    lse = mp.log(total)
    loss, terms = z_loss * lse**2, []
    for j, (t, w) in enumerate(zip(distribution.tolist(), weight.tolist(), strict=True)):
        others = mp.fsum(e[:j] + e[j + 1 :])
        p, complement, surprise = e[j] / total, others / total, mp.log1p(others / e[j])
        slope = p * surprise / complement if gamma else 0
        loss += mp.mpf(t) * w * complement**gamma * surprise
        terms.append(mp.mpf(t) * w * complement**gamma * (1 + gamma * slope))
    common = mp.fsum(terms) + 2 * z_loss * lse
    grad = [v / total * common - s for v, s in zip(e, terms, strict=True)]
    if cap is not None:
        grad = [g * (1 - mp.tanh(v / cap) ** 2) for g, v in zip(grad, x, strict=True)]
    return float(loss), [float(g * scale) for g in grad]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("logits", ["random", "peaked", "offset"])
@pytest.mark.parametrize("target", [torch.int64, "probabilities", "one_hot"])
def test_truth_is_true(name: str, logits: str, target: torch.dtype | str) -> None:
    case = Case("truth", (4, 11), "", logits=logits, target=target)
    problem = make_problem(case, F64, OPTIONS[name])
    arguments = {**problem.arguments, "reduction": "none"}
    arguments.pop("normalizer", None)
    problem = replace(problem, arguments=arguments, grad_loss=torch.ones(4, dtype=F64))
    ours = exact_result(problem)

    smoothing = arguments.get("label_smoothing", 0.0)
    distribution = problem.target
    if case.has_class_indices:
        distribution = torch.nn.functional.one_hot(problem.target, 11)
    distribution = (1 - smoothing) * distribution.double() + smoothing / 11
    weight = torch.ones(11, dtype=F64) if problem.weight is None else problem.weight
    with mp.workdps(50):
        rows = zip(problem.input, distribution, strict=True)
        losses, grads = zip(*(true_row(*row, weight, arguments) for row in rows), strict=True)
    truth = {
        "loss": torch.tensor(losses, dtype=F64),
        "grad_input": torch.tensor(grads, dtype=F64),
    }
    for name, value in ours.items():  # near 1e4, scaling a float64 logit rounds it by 1e-12
        torch.testing.assert_close(value, truth[name], rtol=1e-12, atol=1e-11)


def test_a_class_without_probability_costs_nothing_behind_a_mask() -> None:
    """PyTorch gives 0 * inf = NaN; its gradient is finite, and ours is the same."""
    logits = torch.tensor([[-torch.inf, 0.0, 1.0]], dtype=F64, requires_grad=True)
    target = torch.tensor([[0.0, 0.25, 0.75]], dtype=F64)
    loss = reference.cross_entropy(logits, target)
    alone = reference.cross_entropy(logits[:, 1:], target[:, 1:])
    torch.testing.assert_close(loss, alone)
    (ours,) = torch.autograd.grad(loss, logits)
    (theirs,) = torch.autograd.grad(F.cross_entropy(logits, target), logits)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0, 3.7])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("dtype", [F64, F32], ids=problem_id)
def test_three_derivatives_are_finite(gamma: float, soft: bool, dtype: torch.dtype) -> None:
    gaps = torch.tensor([0.0, 12.0, 17.0, 37.0, 90.0, 750.0, 2e4], dtype=dtype)
    logits = torch.zeros(14, 3, dtype=dtype)
    logits[:7, 0], logits[7:, 0] = gaps, -gaps
    logits[3, 1] = logits[10, 0] = -torch.inf
    target = torch.zeros(14, dtype=torch.int64)
    target = F.one_hot(target, 3).to(dtype) if soft else target
    value = logits.requires_grad_()
    loss = reference.cross_entropy(value, target, gamma=gamma, reduction="none")
    derivative = loss[loss.isfinite()].sum()
    for _ in range(3):
        (slope,) = torch.autograd.grad(derivative, value, create_graph=True)
        assert slope.isfinite().all()
        derivative = slope[:, 0].sum() + 0 * value[:, 1].nan_to_num(neginf=0).sum()


def test_vmap_needs_no_loop(recwarn: pytest.WarningsRecorder) -> None:
    """An operation without a batching rule would run row by row, with a warning."""
    logits, target = torch.randn(3, 4, 5), torch.randint(5, (3, 4))
    for y in (target, torch.rand(3, 4, 5)):
        vmap(grad(lambda x, y: reference.cross_entropy(x, y, gamma=0.5, label_smoothing=0.1)))(
            logits, y
        )
    assert not [warning for warning in recwarn if "batching rule" in str(warning.message)]
