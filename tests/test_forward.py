"""The loss of every case under its options, and the values that are known without a reference."""

import math

import pytest
import torch
from accuracy import assert_same_bits, check, evaluate
from cases import CASES, OPTIONS, Case, Option, all_problems, make_problem, problem_id

import torchce_cuda as ce
from torchce_cuda import reference

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(("case", "dtype", "option"), all_problems(), ids=problem_id)
def test_loss(case: Case, dtype: torch.dtype, option: Option, device: torch.device) -> None:
    problem = make_problem(case, dtype, option, device)
    check(evaluate(ce.cross_entropy, problem, wrt=()), problem)


@pytest.mark.parametrize("case", CASES, ids=problem_id)
def test_loss_is_the_same_with_and_without_gradient(case: Case, device: torch.device) -> None:
    for dtype in case.dtypes:
        for name in case.options:
            problem = make_problem(case, dtype, OPTIONS[name], device)
            alone = evaluate(ce.cross_entropy, problem, wrt=())["loss"]
            assert_same_bits(alone, evaluate(ce.cross_entropy, problem)["loss"])


@pytest.mark.parametrize("case", CASES, ids=problem_id)
def test_arguments_are_not_written_to(case: Case, device: torch.device) -> None:
    problem = make_problem(case, case.dtypes[0], OPTIONS[case.options[-1]], device)
    before = [None if x is None else x.clone() for x in problem.tensors]
    evaluate(ce.cross_entropy, problem)
    for x, old in zip(problem.tensors, before, strict=True):
        if x is not None:
            assert_same_bits(x, old)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=problem_id)
@pytest.mark.parametrize("gap", [0.0, 5.0, 12.0, 17.0, 40.0, 80.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_nothing_is_lost_as_p_approaches_one(
    gap: float, gamma: float, dtype: torch.dtype, device: torch.device
) -> None:
    # lse - logit has no digit left at a gap of 17 in float32, and of 37 in float64.
    logits = torch.tensor([[gap, 0.0, 0.0]], dtype=dtype, device=device)
    loss = ce.cross_entropy(logits, torch.tensor([0], device=device), gamma=gamma)
    odds = 2 * math.exp(-gap)
    exact = (odds / (1 + odds)) ** gamma * math.log1p(odds)
    # A device rounds gap * log2(e) before it takes 2 to that power: 4 eps at a gap of 12, on top of
    # the 2 of the power itself.
    roundings = 12 if device.type == "cuda" else 8
    # (1 - p)^gamma = exp(gamma log(1 - p)) multiplies the rounding of the exponent by it.
    rel = (roundings + gamma * gap) * torch.finfo(dtype).eps
    assert loss.item() == pytest.approx(exact, rel=rel, abs=1e-44)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=problem_id)
@pytest.mark.parametrize("shape", [(200, 40), (200, 1000), (100, 4999), (50, 100, 3)], ids=str)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_nothing_is_lost_behind_a_soft_cap(
    gamma: float, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """The target's logit is what the sums have been taken with, to the bit, also by tanh."""
    logits = torch.randn(shape, dtype=dtype)
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    peaks = torch.empty(target.shape, dtype=dtype).uniform_(10, 60)
    logits.scatter_(1, target.unsqueeze(1), peaks.unsqueeze(1))
    options = {"gamma": gamma, "logit_softcap": 30.0, "reduction": "none"}

    def loss_and_gradient(function, x, target):
        x = x.clone().requires_grad_()
        loss = function(x, target, **options)
        loss.sum().backward()
        at_target = x.grad.gather(1, target.unsqueeze(1))
        return loss.detach().cpu().double(), at_target.cpu().double()

    ours = loss_and_gradient(ce.cross_entropy, logits.to(device), target.to(device))
    exact = loss_and_gradient(reference.cross_entropy, logits.double(), target)
    assert (ours[0] >= 0).all()
    # an error of z = 30 tanh(x / 30) is one of the loss, relative to it; the power multiplies it
    rtol = 30 * 4 * (2 + gamma) * torch.finfo(dtype).eps
    torch.testing.assert_close(ours, exact, rtol=rtol, atol=1e-37)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 16, 1000, 50257])
def test_uniform_rows_cost_log_of_the_classes(num_classes: int, device: torch.device) -> None:
    logits = torch.full((3, num_classes), -7.25, device=device)
    loss = ce.cross_entropy(logits, torch.zeros(3, dtype=torch.int64, device=device))
    assert loss.item() == pytest.approx(math.log(num_classes), rel=3e-7)


def test_a_shift_of_a_row_changes_nothing(device: torch.device) -> None:
    logits = torch.randint(-64, 64, (5, 37), device=device) / 8  # exact after the shift as well
    target = torch.arange(5, device=device)
    shifted = ce.cross_entropy(logits + 8192.0, target, reduction="none")
    loss = ce.cross_entropy(logits, target, reduction="none")
    if device.type == "cuda":  # relative to a power of two, other digits are rounded away
        torch.testing.assert_close(loss, shifted, rtol=5e-7, atol=0)
    else:
        assert_same_bits(loss, shifted)


def test_float16_sums_do_not_overflow(device: torch.device) -> None:
    # PyTorch sums in float16: the first gives NaN there, the second inf.
    logits = torch.zeros(70_000, 2, dtype=torch.float16, device=device)
    loss = ce.cross_entropy(logits, torch.zeros(70_000, dtype=torch.int64, device=device))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)

    logits = torch.zeros(2, 32_000, dtype=torch.float16, device=device)
    target = torch.zeros(2, dtype=torch.int64, device=device)
    loss = ce.cross_entropy(logits, target, label_smoothing=0.1)
    assert loss.item() == pytest.approx(math.log(32_000), rel=1e-6)


def test_weight_counts_only_where_it_is_used(device: torch.device) -> None:
    logits, target = torch.randn(4, 3, device=device), torch.tensor([0, 1, 0, 1], device=device)
    weight = torch.tensor([1.0, 2.0, NAN], device=device)
    clean = torch.tensor([1.0, 2.0, 5.0], device=device)
    assert_same_bits(
        ce.cross_entropy(logits, target, weight), ce.cross_entropy(logits, target, clean)
    )
    assert ce.cross_entropy(logits, target, weight, label_smoothing=0.1).isnan()


def test_zero_weight_of_an_impossible_target(device: torch.device) -> None:
    logits, target = torch.tensor([[-INF, 1.0]], device=device), torch.tensor([0], device=device)
    weight = torch.tensor([0.0, 1.0], device=device)
    loss = ce.cross_entropy(logits, target, weight, reduction="sum")
    assert loss.isnan()  # 0 * inf, as in PyTorch


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(3, 5), (3, 5000), (3, 5, 4)], ids=str)
def test_zero_weight_of_an_impossible_class(
    shape: tuple[int, ...], soft: bool, gamma: float, device: torch.device
) -> None:
    """Contributes 0 where every class counts, in the kernels and in the composition."""
    logits = torch.randn(shape, dtype=torch.float64, device=device)
    logits[:, 1] = -INF
    weight = torch.rand(shape[1], dtype=torch.float64, device=device)
    weight[1] = 0
    rows = shape[:1] + shape[2:]
    target = torch.rand(shape) if soft else torch.zeros(rows, dtype=torch.int64)
    options = {"weight": weight, "gamma": gamma, "label_smoothing": 0.1, "reduction": "sum"}

    def loss_and_gradient(function):
        x = logits.clone().requires_grad_()
        loss = function(x, target.to(device), **options)
        return loss.detach(), *torch.autograd.grad(loss, x)

    ours, expected = map(loss_and_gradient, (ce.cross_entropy, reference.cross_entropy))
    assert all(x.isfinite().all() for x in ours)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64], ids=problem_id)
def test_normalizer_is_a_number_or_a_tensor(dtype: torch.dtype, device: torch.device) -> None:
    logits, target = torch.randn(6, 5, device=device), torch.tensor([0, 1, 2, 3, 4, -100])
    target = target.to(device)
    total = ce.cross_entropy(logits, target, reduction="sum")
    for normalizer in (3, 3.0, torch.tensor(3, dtype=dtype, device=device)):
        loss = ce.cross_entropy(logits, target, normalizer=normalizer)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(total.item() / 3, rel=2e-7)


def test_without_normalizer_means_add_up(device: torch.device) -> None:
    """Gradient accumulation: parts divided by the count of the whole sum up to its mean."""
    logits, target = torch.randn(12, 5, device=device), torch.randint(5, (12,), device=device)
    target[3:7] = -100
    count = (target != -100).sum()
    parts = [
        ce.cross_entropy(x, y, normalizer=count)
        for x, y in zip(logits.split(4), target.split(4), strict=True)
    ]
    torch.testing.assert_close(sum(parts), ce.cross_entropy(logits, target))


def test_module_forms(device: torch.device) -> None:
    logits, target = torch.randn(6, 5, device=device), torch.randint(5, (6,), device=device)
    weight = torch.rand(5, device=device)
    options = {"ignore_index": 2, "label_smoothing": 0.1, "z_loss": 1e-3, "logit_softcap": 5.0}
    assert_same_bits(
        ce.CrossEntropyLoss(weight, reduction="none", **options)(logits, target),
        ce.cross_entropy(logits, target, weight, reduction="none", **options),
    )
    assert_same_bits(
        ce.FocalLoss(weight)(logits, target), ce.cross_entropy(logits, target, weight, gamma=2.0)
    )
    assert_same_bits(
        ce.FocalLoss(gamma=0.5)(logits, target), ce.cross_entropy(logits, target, gamma=0.5)
    )


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("shape", [(5, 7), (3, 40), (2, 5, 19)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_mix(shape: tuple, dtype: torch.dtype, device: torch.device) -> None:
    """Input, probabilities and weight are each read in their own dtype."""
    for target_dtype in DTYPES:
        for weight_dtype in DTYPES:
            logits = torch.randn(shape, device=device).to(dtype).requires_grad_()
            target = torch.rand(shape, device=device).to(target_dtype)
            weight = torch.rand(shape[1], device=device).to(weight_dtype)
            loss = ce.cross_entropy(logits, target, weight)
            expected = torch.nn.functional.cross_entropy(
                logits.double(), target.double(), weight.double()
            )
            wide = torch.float64 in (dtype, target_dtype)
            assert loss.dtype == (torch.float64 if wide else torch.float32)
            torch.testing.assert_close(
                loss.double(), expected, rtol=1e-12 if wide else 1e-5, atol=0
            )
            grad, expected_grad = (
                torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, expected)
            )
            assert grad.dtype == dtype
            torch.testing.assert_close(grad, expected_grad)
