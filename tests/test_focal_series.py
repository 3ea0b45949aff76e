"""Focal loss with a spread: where the series in p gives way to the exact terms, and the classes at
the maximum, which always take them."""

from dataclasses import replace

import pytest
import torch
from accuracy import check, evaluate
from cases import BF16, F16, F32, F64, Case, Problem, make_problem, option, problem_id
from torch import Tensor

import torchce_cuda as ce

pytestmark = pytest.mark.usefixtures("one_thread")

GAMMAS = (0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 3.7, 8.0, 10.0)
# Of the likeliest class. Beyond 1/2 its gradient is not the series' for any gamma; a little to
# either side.
PEAKS = [2.0**-k for k in range(1, 15)] + [0.99 / 6, 1.01 / 6, 0.252, 0.499, 0.501, 0.9, 0.999]
SMOOTHING = {"label_smoothing": 0.1, "reduction": "none"}
OPTIONS = {
    "smoothing": lambda gamma: option("", "", gamma=gamma, **SMOOTHING),
    "weight": lambda gamma: option("", "", "positive", gamma=gamma, **SMOOTHING),
    "softcap": lambda gamma: option("", "", gamma=gamma, logit_softcap=30.0, **SMOOTHING),
}


def with_peaks(logits: Tensor, classes: Tensor) -> Tensor:
    """One class of each row gets the probability in PEAKS."""
    rest = logits.double().scatter(1, classes, -torch.inf).logsumexp(1, keepdim=True)
    peaks = torch.tensor(PEAKS, dtype=torch.float64).unsqueeze(1)
    return logits.scatter(1, classes, (rest + peaks.logit()).to(logits.dtype))


def check_each_row(case: Case, dtype: torch.dtype, opt, classes: Tensor) -> None:
    """Row by row, lest the largest numbers of one hide the errors of another."""
    whole = make_problem(case, dtype, opt)
    check_rows(whole, with_peaks(whole.input, classes))


def check_rows(whole: Problem, logits: Tensor) -> None:
    for row in range(len(logits)):
        part = slice(row, row + 1)
        target, grad_loss = whole.target[part], whole.grad_loss[part]
        problem = replace(whole, input=logits[part], target=target, grad_loss=grad_loss)
        problem = replace(problem, case=replace(whole.case, shape=(1, logits.shape[1])))
        check(evaluate(ce.cross_entropy, problem), problem)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=problem_id)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_smoothing(gamma: float, dtype: torch.dtype, kind: str) -> None:
    # Two tiles and a part of one; the peak is in the target's tile or in another.
    case = Case("series", (len(PEAKS), 4999), "")
    classes = torch.arange(len(PEAKS)).unsqueeze(1) * 263 % 4999
    check_each_row(case, dtype, OPTIONS[kind](gamma), classes)


@pytest.mark.parametrize("weight", [None, "positive"])
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=problem_id)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_probabilities(gamma: float, dtype: torch.dtype, weight: str | None) -> None:
    case = Case("series_soft", (len(PEAKS), 4160), "", target="probabilities")
    classes = torch.arange(len(PEAKS)).unsqueeze(1) * 263 % 4160
    check_each_row(case, dtype, option("", "", weight, gamma=gamma, reduction="none"), classes)


def focal_loss(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    log_p = logits.log_softmax(1)
    return (target * (-torch.expm1(log_p)) ** gamma * -log_p).sum(1)


@pytest.mark.parametrize("dtype", [F64, F32], ids=problem_id)
@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.0])
def test_all_of_the_target_is_at_the_peak(gamma: float, dtype: torch.dtype) -> None:
    """Everything cancels: loss and gradient are as small as (1 - p)^(gamma + 1)."""
    classes = torch.arange(len(PEAKS)).unsqueeze(1) * 263 % 1000
    logits = with_peaks(torch.randn(len(PEAKS), 1000, dtype=dtype), classes)
    target = torch.zeros_like(logits).scatter_(1, classes, 1)

    def results(function, x):
        x = x.clone().requires_grad_()
        loss = function(x, target.to(x.dtype))
        loss.sum().backward()
        return loss.detach().double(), x.grad.double()

    ours = results(lambda x, t: ce.cross_entropy(x, t, gamma=gamma, reduction="none"), logits)
    theirs = results(lambda x, t: focal_loss(x, t, gamma), logits)
    exact = results(lambda x, t: focal_loss(x, t, gamma), logits.double())
    if dtype == F64:  # what float64 itself loses is not known: as close as it can be
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-20)
        return
    for power, x, y, z in zip((gamma + 1, gamma + 2), ours, theirs, exact, strict=True):
        for row, peak in enumerate(PEAKS):
            # one rounding of the row's sum, in 1 - p and from there in its power; rivals are lucky
            rounding = power * torch.finfo(dtype).eps / (1 - peak)
            allowed = 2 * (y[row] - z[row]).abs().max() + rounding * z[row].abs().max()
            assert (x[row] - z[row]).abs().max() <= allowed, f"p = {peak}"


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_masked_classes(gamma: float) -> None:
    """A class of probability 0 in target and softmax counts nothing, nor do whole tiles of them."""
    logits = torch.randn(3, 4999, dtype=F32)
    target = torch.rand(3, 4999)
    logits[:, :2500] = -torch.inf
    target[:, :2500] = 0
    x, y = (z.clone().requires_grad_() for z in (logits, logits[:, 2500:]))
    loss = ce.cross_entropy(x, target, gamma=gamma)
    expected = ce.cross_entropy(y, target[:, 2500:], gamma=gamma)
    torch.testing.assert_close(loss, expected)
    torch.autograd.backward((loss, expected))
    assert torch.equal(x.grad[:, :2500], torch.zeros(3, 2500))
    torch.testing.assert_close(x.grad[:, 2500:], y.grad)
    masked = ce.cross_entropy(logits, torch.tensor([3000, 4000, 4998]), gamma=gamma)
    assert masked.isfinite()
    smoothed = ce.cross_entropy(
        logits, torch.tensor([3000, 4000, 4998]), gamma=gamma, label_smoothing=0.1
    )
    assert smoothed.item() == float("inf")


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("classes", [20, 1000, 4999])
def test_no_softmax_and_nothing_to_count(classes: int, gamma: float) -> None:
    """A row of nothing but -inf is NaN whatever its probabilities."""
    x = torch.full((2, classes), -torch.inf)
    x[1] = 0.0
    loss = ce.cross_entropy(x, torch.zeros_like(x), gamma=gamma, reduction="none")
    assert loss.isnan().tolist() == [True, False]


@pytest.mark.parametrize("kind", ["smoothing", "weight", "probabilities"])
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=problem_id)
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("depth", [80.0, 100.0, 1e3, 1e4])
def test_a_tile_far_below_the_maximum(
    depth: float, gamma: float, dtype: torch.dtype, kind: str
) -> None:
    """Its probabilities are 0 and its costs are not: padding of a vocabulary, masked by -1e4."""
    soft = kind == "probabilities"
    opt = option("", "", gamma=gamma, reduction="none") if soft else OPTIONS[kind](gamma)
    case = Case("far", (6, 4999), "", target="probabilities" if soft else torch.int64)
    whole = make_problem(case, dtype, opt)
    logits = whole.input.clone()
    logits[:3, 2048:] -= depth
    logits[3:, :4096] -= depth
    check_rows(whole, logits)


@pytest.mark.parametrize("kind", [*OPTIONS, "probabilities"])
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=problem_id)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("classes", [33, 1000, 2081])
def test_ties(classes: int, gamma: float, dtype: torch.dtype, kind: str) -> None:
    """Classes that share the maximum of a tile, the target among them or not."""
    soft = kind == "probabilities"
    opt = option("", "", gamma=gamma, reduction="none") if soft else OPTIONS[kind](gamma)
    case = Case("ties", (6, classes), "", target="probabilities" if soft else torch.int64)
    problem = make_problem(case, dtype, opt)
    peak = problem.input.max() + 1
    tied = [torch.arange(n) * 31 % classes for n in (1, 2, 7, classes)]
    for row, at in enumerate(tied):
        problem.input[row, at] = peak
    if not soft:
        problem.target[0] = tied[0][0]
        problem.target[1] = tied[1][1]
        problem.target[2] = 1 if classes > 33 else 5
    problem.input[4] = -torch.inf  # all classes but one, which is the likeliest of every tile
    problem.input[4, classes - 1] = 0.0
    if soft:
        problem.target[4] = torch.arange(classes) == classes - 1
        problem.target[:3, 0] = 0.0
    check(evaluate(ce.cross_entropy, problem), problem)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_infinite_maximum(gamma: float) -> None:
    logits = torch.randn(2, 1000, dtype=F32)
    logits[0, 3] = torch.inf
    logits[1, [3, 7]] = torch.inf
    x = logits.requires_grad_()
    target = torch.tensor([3, 5])
    loss = ce.cross_entropy(x, target, gamma=gamma, label_smoothing=0.1, reduction="none")
    loss.sum().backward()
    assert loss.isnan().all() and x.grad.isnan().all()
