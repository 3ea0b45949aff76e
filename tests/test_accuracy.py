"""The check itself: it must reject planted mistakes. Its truth is tested in `test_reference.py`."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from accuracy import (
    Result,
    assert_as_accurate_as_torch,
    cancels,
    evaluate,
    exact_result,
    torch_results,
)
from cases import CASES, F32, OPTIONS, Case, Problem, all_problems, make_problem, problem_id
from torch import Tensor

from torchce_cuda import reference

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Mistake:
    """`plant` makes a good result wrong, where the problem is one that shows the mistake."""

    name: str
    suits: Callable[[Problem], bool]
    plant: Callable[[Problem, Result], Result]


def rewrite(problem: Problem, without_weight: bool = False, **arguments) -> Result:
    """What an implementation would give that was called with other options."""
    problem = replace(
        problem,
        weight=None if without_weight else problem.weight,
        arguments={**problem.arguments, **arguments},
    )
    return evaluate(reference.cross_entropy, problem, dtype=accumulator(problem))


def accumulator(problem: Problem) -> torch.dtype:
    return torch.promote_types(problem.input.dtype, F32)


def counted(problem: Problem) -> Tensor:
    """The rows that are not ignored, as a mask of the shape of the rows."""
    if not problem.case.has_class_indices:
        return torch.ones(problem.case.row_shape, dtype=torch.bool)
    return problem.target.long() != problem.arguments.get("ignore_index", -100)


def rows_of(problem: Problem, grad: Tensor) -> Tensor:
    """A copy of the gradient as [rows, C]."""
    return grad.movedim(problem.case.class_dim, -1).reshape(-1, problem.case.num_classes).clone()


def with_rows(problem: Problem, good: Result, rows: Tensor) -> Result:
    case = problem.case
    grad = rows.view(*case.row_shape, case.num_classes).movedim(-1, case.class_dim)
    return good | {"grad_input": grad}


def is_16_bit(problem: Problem) -> bool:
    return problem.input.dtype.itemsize == 2


def has_gradient(problem: Problem) -> bool:
    """Whether there is a gradient other than 0, in float16 other than a subnormal number."""
    case = problem.case
    saturated = "logit_softcap" in problem.arguments and case.logits in ("extreme", "offset")
    tiny = problem.input.dtype == torch.float16 and case.logits in ("peaked", "offset")
    uniform = case.logits == "equal" and problem.arguments.get("label_smoothing") == 1
    return (
        case.num_classes > 1
        and bool(counted(problem).any())
        and case.logits != "masked_but_one"  # p = 1 at the target
        and not (saturated or tiny or uniform)
    )


def shows_small_gradients(problem: Problem) -> bool:
    """Whether gradients far below the largest are more than its rounding."""
    return (
        has_gradient(problem)
        and problem.case.logits != "extreme"  # p is 0 or 1
        and not (is_16_bit(problem) and cancels(problem))
    )


def has_finite_loss(problem: Problem) -> bool:
    """Smoothing puts probability on classes masked by -inf; the soft cap makes numbers of them."""
    masked = problem.case.logits in ("masked", "masked_start", "masked_but_one")
    smoothed = "label_smoothing" in problem.arguments
    return not (masked and smoothed and "logit_softcap" not in problem.arguments)


def is_modulated(problem: Problem) -> bool:
    """Whether (1 - p)^gamma is anything but 0 and 1 in a term that counts."""
    if "gamma" not in problem.arguments or not bool(counted(problem).any()):
        return False
    scale, cap = (problem.arguments.get(name) for name in ("logit_scale", "logit_softcap"))
    z = problem.input.double() * (scale or 1)
    p = (z if cap is None else cap * (z / cap).tanh()).softmax(problem.case.class_dim)
    if problem.case.has_class_indices:
        classes = torch.arange(problem.case.num_classes)
        share = (classes == problem.target.long().unsqueeze(-1)).movedim(-1, problem.case.class_dim)
    else:
        share = problem.target / problem.target.sum(problem.case.class_dim, keepdim=True)
    p = p[share > 0.02]
    upper = 0.99 if "label_smoothing" in problem.arguments else 1  # else only -log p would count
    return bool(((p > 0.05) & (p < upper)).any())


def zero_off_target(problem: Problem, good: Result) -> Result:
    rows, target = rows_of(problem, good["grad_input"]), problem.target.long().reshape(-1, 1)
    classes = torch.arange(problem.case.num_classes)
    return with_rows(problem, good, torch.where(classes == target, rows, 0))


def zero_tail(problem: Problem, good: Result) -> Result:
    rows = rows_of(problem, good["grad_input"])
    rows[:, -(problem.case.num_classes % 8 or 8) :] = 0
    return with_rows(problem, good, rows)


def forget_tail_in_lse(problem: Problem, good: Result) -> Result:
    case = problem.case
    in_tail = torch.arange(case.num_classes) >= case.num_classes - (case.num_classes % 8 or 8)
    is_target = torch.arange(case.num_classes) == problem.target.long().unsqueeze(-1)
    forgotten = (in_tail & ~is_target).movedim(-1, case.class_dim)
    return rewrite(replace(problem, input=problem.input.masked_fill(forgotten, -torch.inf)))


def swap_rows(problem: Problem, good: Result) -> Result:
    rows = rows_of(problem, good["grad_input"])
    first = int(rows.nan_to_num().abs().amax(1).argmax())
    second = int((rows - rows[first]).nan_to_num().abs().amax(1).argmax())
    rows[[first, second]] = rows[[second, first]]
    return with_rows(problem, good, rows)


def scale_gradient(problem: Problem, good: Result) -> Result:
    factor = 1 + max(1e-3, 4 * torch.finfo(problem.input.dtype).eps)
    return good | {"grad_input": (good["grad_input"].double() * factor).to(problem.input.dtype)}


def touch_ignored_row(problem: Problem, good: Result) -> Result:
    rows = rows_of(problem, good["grad_input"])
    rows[(~counted(problem)).flatten().int().argmax(), 0] = 1e-6
    return with_rows(problem, good, rows)


def spread_over_others(problem: Problem, good: Result) -> Result:
    """The smoothed part shared among the C - 1 other classes, a common misreading."""
    case, smoothing = problem.case, problem.arguments["label_smoothing"]
    hard, uniform = rewrite(problem, label_smoothing=0.0), rewrite(problem, label_smoothing=1.0)
    return {
        name: (1 - smoothing) * hard[name]
        + smoothing * (case.num_classes * uniform[name] - hard[name]) / (case.num_classes - 1)
        for name in good
    }


def divide_by_all_rows(problem: Problem, good: Result) -> Result:
    total = rewrite(problem, reduction="sum")
    rows = max(counted(problem).numel(), 1)
    return {name: (value.double() / rows).to(value.dtype) for name, value in total.items()}


def forget_softcap_in_gradient(problem: Problem, good: Result) -> Result:
    cap, scale = problem.arguments["logit_softcap"], problem.arguments.get("logit_scale", 1.0)
    slope = 1 - (scale * problem.input.double() / cap).tanh().square()
    grad = good["grad_input"].double() / slope
    return good | {"grad_input": grad.to(problem.input.dtype)}


def forget_scale_in_gradient(problem: Problem, good: Result) -> Result:
    return good | {"grad_input": good["grad_input"] / problem.arguments["logit_scale"]}


def spread_nan(problem: Problem, good: Result) -> Result:
    rows = rows_of(problem, good["grad_input"])
    rows[1] = float("nan")  # between two rows that are NaN by right
    return with_rows(problem, good, rows)


def clamp_inf(problem: Problem, good: Result) -> Result:
    return good | {"loss": good["loss"].clamp(max=1e30)}


def round_loss(problem: Problem, good: Result) -> Result:
    return good | {"loss": good["loss"] * (1 + torch.finfo(torch.bfloat16).eps / 4)}


MISTAKES = (
    Mistake(
        "off-target gradients are 0",
        lambda p: has_gradient(p) and p.case.has_class_indices,
        zero_off_target,
    ),
    Mistake(
        "gamma is off by 1e-2",
        lambda p: is_modulated(p) and (has_finite_loss(p) or not is_16_bit(p)),
        lambda p, good: rewrite(p, gamma=p.arguments["gamma"] + 1e-2),
    ),
    Mistake(
        "weight is ignored",  # in the mean of one row it cancels
        lambda p: has_gradient(p) and p.weight is not None and counted(p).sum() > 1,
        lambda p, good: rewrite(p, without_weight=True),
    ),
    Mistake(
        "the last vector of a row gets no gradient",
        lambda p: shows_small_gradients(p) and p.case.num_classes > 8,
        zero_tail,
    ),
    Mistake(
        "the last vector of a row is missing in lse",
        lambda p: (
            shows_small_gradients(p)
            and p.case.has_class_indices
            and 8 < p.case.num_classes < 6000  # of more classes, eight are too few to notice
            and not p.arguments.get("label_smoothing")
        ),
        forget_tail_in_lse,
    ),
    Mistake(
        "two rows are swapped",
        lambda p: has_gradient(p) and counted(p).numel() > 1,
        swap_rows,
    ),
    Mistake("the gradient is scaled", has_gradient, scale_gradient),
    Mistake(
        "an ignored row has a gradient",
        lambda p: p.input.numel() > 0 and not bool(counted(p).all()),
        touch_ignored_row,
    ),
    Mistake(
        "smoothing leaves the target out",
        lambda p: (
            has_gradient(p)
            and p.case.has_class_indices
            and p.case.num_classes < 6000
            and "label_smoothing" in p.arguments
            # In the mean of many rows, targets are neither likelier nor rarer than other classes.
            and (not is_16_bit(p) or (has_finite_loss(p) and counted(p).sum() < 1000))
        ),
        spread_over_others,
    ),
    Mistake(
        "the mean divides by all rows",
        lambda p: (
            has_gradient(p)
            and p.case.has_class_indices
            and p.arguments.get("reduction", "mean") == "mean"
            and "normalizer" not in p.arguments
            and (p.weight is not None or not bool(counted(p).all()))
        ),
        divide_by_all_rows,
    ),
    Mistake(
        "z_loss is ignored",
        lambda p: bool(counted(p).any()) and "z_loss" in p.arguments,
        lambda p, good: rewrite(p, z_loss=0.0),
    ),
    Mistake(
        "softcap has no derivative",  # near 0 it is 1
        lambda p: (
            shows_small_gradients(p) and "logit_softcap" in p.arguments and p.case.logits != "equal"
        ),
        forget_softcap_in_gradient,
    ),
    Mistake(
        "scale has no derivative",
        lambda p: has_gradient(p) and "logit_scale" in p.arguments,
        forget_scale_in_gradient,
    ),
    Mistake("NaN spreads to the next row", lambda p: p.case.logits == "no_softmax", spread_nan),
    Mistake("inf becomes a number", lambda p: p.case.logits == "masked_target", clamp_inf),
    Mistake(
        "the loss is rounded to 16 bits",
        lambda p: has_gradient(p) and has_finite_loss(p),
        round_loss,
    ),
)


@pytest.mark.parametrize("case", CASES, ids=problem_id)
def test_planted_mistakes_are_rejected(case: Case) -> None:
    accepted = []
    for dtype in case.dtypes:
        for name in case.options:
            problem = make_problem(case, dtype, OPTIONS[name])
            truth, rivals = exact_result(problem), torch_results(problem)
            good = rivals[0]
            assert_as_accurate_as_torch(good, problem, truth, rivals)
            for mistake in MISTAKES:
                if mistake.suits(problem):
                    try:
                        assert_as_accurate_as_torch(
                            mistake.plant(problem, good), problem, truth, rivals
                        )
                    except AssertionError:
                        continue
                    accepted.append(f"{mistake.name}: {dtype}, {name}")
    assert not accepted, "\n".join(accepted)


def test_every_mistake_is_planted() -> None:
    problems = [make_problem(*row) for row in all_problems()]
    planted = {mistake.name: sum(map(mistake.suits, problems)) for mistake in MISTAKES}
    assert min(planted.values()) >= 4, planted
