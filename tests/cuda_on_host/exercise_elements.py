"""The kernels of the sigmoid losses, on the host, against float64: a part of exercise.py.

    python exercise_elements.py [--quick]

Reaches each dtype of each operand, each modulation, operands of any strides and broadcast ones,
chunks on and off a packet's boundary and cut off by the end, a block's several chunks, many partial
sums, ignored elements that hold NaN, and nothing but those.
"""

import sys
from collections.abc import Iterator
from itertools import cycle, product
from typing import NamedTuple

import torch
from torch import Tensor

import torchce_cuda as ce
from torchce_cuda import reference

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
INTEGERS = (torch.int64, torch.int32, torch.uint8, torch.bool)
LOSS_TOLERANCE = {F64: 1e-12, F32: 3e-6, BF16: 3e-6, F16: 3e-6}
GRAD_TOLERANCE = {F64: 1e-12, F32: 3e-6, BF16: 4e-3, F16: 5e-4}
GAMMAS = (0.0, 2.0, 1.5, 0.5)


class Case(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype
    target: torch.dtype = F32
    gamma: float = 2.0
    alpha: float | None = None
    weight: str = ""  # a layout
    pos_weight: str = ""
    logits: str = ""
    other: str = ""  # target
    weight_dtype: torch.dtype = F32
    ignores: bool = True


def lay_out(values: Tensor, layout: str) -> Tensor:
    """The same values, or some of them broadcast, in memory of this layout."""
    if layout == "offset":
        memory = values.new_empty(values.numel() + 1)
        return memory[1:].view(values.shape).copy_(values)
    if layout == "transposed":
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels":
        return values.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "every second":
        memory = values.new_empty(*values.shape[:-1], 2 * values.shape[-1])
        return memory[..., 1::2].copy_(values)
    if layout == "row":
        return values[(0,) * (values.dim() - 1)].contiguous()
    if layout == "column":
        return values[..., :1].contiguous()
    if layout == "one":
        return values.flatten()[0].clone()
    assert not layout, layout
    return values


def cases(quick: bool) -> Iterator[Case]:
    dtypes = (F32, BF16, F16, F64)
    targets = cycle((F32, BF16, F16, F64, *INTEGERS))
    layouts = cycle(("", "offset"))
    for dtype, gamma in product(dtypes, GAMMAS):
        for _ in range(1 if quick else 8):
            offset = next(layouts)
            yield Case((1025,), dtype, next(targets), gamma, 0.25, "", "", offset, offset)
    sizes = [(0,), (), (1,), (7, 1), (1023,), (2049,), (70_001,)]
    for shape, dtype in product(sizes[:-1] if quick else sizes, dtypes):
        yield Case(shape, dtype)
    yield Case((140_001,), F64, F32, 0.0)  # more partial sums than threads add them up
    if not quick:  # up to four chunks a thread
        yield Case((2 * 2_097_152 + 3,), F64, torch.uint8, 0.0)
    shapes = [(9, 16), (5, 91), (300, 3), (4, 5, 7, 9)]
    some = cycle((0, 1, 1))
    places = ["", "offset", "transposed", "every second"]
    broadcast = ["row", "column", "one", "transposed", "every second"]
    weights = cycle(product(["", *broadcast], [F32, F64, BF16, F16, *INTEGERS]))
    pos_weights = cycle(broadcast)
    for shape, dtype, logits, other in product(shapes, dtypes, places, [*places, *broadcast[:3]]):
        if quick and next(some):
            continue
        weight, weight_dtype = next(weights)
        yield Case(
            shape,
            dtype,
            weight=weight,
            pos_weight=next(pos_weights),
            logits=logits,
            other=other,
            weight_dtype=weight_dtype,
            ignores=False,
        )
    for dtype, logits, other in product(dtypes, ["channels", ""], ["", "channels", "transposed"]):
        yield Case((2, 3, 5, 7), dtype, torch.int64, 1.5, 0.3, "row", "column", logits, other)


def make_target(case: Case) -> tuple[Tensor, float | None]:
    if case.target in INTEGERS:
        target = torch.randint(2, case.shape).to(case.target)
    else:
        target = (torch.rand(case.shape) * 1.5 - 0.25).clamp(0, 1).to(case.target)
    if not case.ignores:
        return target, None
    if case.target == torch.bool:
        return target, 1.0
    ignore_value = 255.0 if case.target == torch.uint8 else -1.0
    target[torch.rand(case.shape) < 0.2] = ignore_value
    return target, ignore_value


def compare(actual: Tensor, exact: Tensor, tolerance: float, case: object) -> None:
    assert torch.equal(actual.isnan(), exact.isnan()), case
    exact = exact.nan_to_num()
    error = (actual.double().nan_to_num() - exact).abs()
    error -= 3e-8 if actual.dtype == F16 else 0.0  # which has no digits below 2^-14
    assert actual.numel() == 0 or error.max() <= tolerance * exact.abs().max(), case


def check(case: Case) -> None:
    target, ignore_value = make_target(case)
    target = lay_out(target, case.other).expand(case.shape)
    x = 3 * torch.randn(case.shape, dtype=F64)
    ignored = torch.zeros(case.shape, dtype=torch.bool)
    if ignore_value is not None:
        ignored = target == ignore_value
        x[ignored] = torch.nan
    logits = lay_out(x.to(case.dtype), case.logits).requires_grad_()
    weights = {}
    for name, layout in (("weight", case.weight), ("pos_weight", case.pos_weight)):
        if layout:
            values = 3 * torch.rand(case.shape, dtype=F64)
            weights[name] = lay_out(values.to(case.weight_dtype), layout)
    options = {"alpha": case.alpha, "gamma": case.gamma, "ignore_value": ignore_value}
    wide = {name: value.double().expand(case.shape) for name, value in weights.items()}
    acc = F64 if F64 in (case.dtype, target.dtype) else F32

    for reduction in ("mean", "sum", "none"):
        options["reduction"] = reduction
        exact = logits.detach().double().requires_grad_()
        exact_loss = reference.sigmoid_focal_loss(exact, target.double(), **wide, **options)
        upstream = torch.linspace(-1, 2, exact_loss.numel(), dtype=F64).view_as(exact_loss)
        if len(case.shape) > 1 and reduction == "none":
            upstream = lay_out(upstream, case.logits if case.logits != "offset" else "row")
            upstream = upstream.expand(case.shape)
        (exact_grad,) = torch.autograd.grad(exact_loss, exact, upstream)
        exact_grad[ignored] = 0  # where all are ignored the mean's gradient is 0 times NaN
        loss = ce.sigmoid_focal_loss(logits, target, **weights, **options)
        again = ce.sigmoid_focal_loss(logits, target, **weights, **options)
        (grad,) = torch.autograd.grad(loss, logits, upstream.to(loss))
        where = (case, reduction)
        assert loss.dtype == acc and torch.equal(loss.nan_to_num(), again.nan_to_num()), where
        compare(loss.detach(), exact_loss.detach(), LOSS_TOLERANCE[case.dtype], where)
        compare(grad, exact_grad, GRAD_TOLERANCE[case.dtype], where)
        assert (grad[ignored] == 0).all(), where
        assert reduction != "none" or (loss[ignored] == 0).all(), where


def check_all_ignored(dtype: torch.dtype) -> None:
    """The mean of nothing is NaN; its gradient, and all else, is 0."""
    for upstream, reduction in product((1.0, torch.inf, torch.nan), ("mean", "sum", "none")):
        logits = torch.full((2, 3001), torch.inf, dtype=dtype, requires_grad=True)
        loss = ce.sigmoid_focal_loss(
            logits, torch.full((2, 3001), 7.0), ignore_value=7.0, reduction=reduction
        )
        assert loss.isnan() if reduction == "mean" else (loss == 0).all(), (dtype, reduction)
        (grad,) = torch.autograd.grad(loss, logits, torch.full_like(loss, upstream))
        assert (grad == 0).all(), (dtype, reduction, upstream)


def exercise(quick: bool) -> int:
    count = 0
    for case in cases(quick):
        check(case)
        count += 1
    for dtype in (F32, BF16, F16, F64):
        check_all_ignored(dtype)
        count += 1
    return count


if __name__ == "__main__":
    assert "cuda_on_host" in ce.__file__, ce.__file__
    torch.manual_seed(0)
    print(f"{exercise('--quick' in sys.argv)} problems agree with float64")
