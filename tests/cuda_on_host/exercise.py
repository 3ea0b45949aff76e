"""Every kernel, on the host, against float64: run by test_kernels.py once per build and order.

    python exercise.py [--quick | --long]

Reaches each strategy and team (one thread, 4 and 8 lanes, a warp, a block, a cluster, streaming,
split rows, both reads of a gradient), each dtype and kind of term, rows that begin anywhere,
ignored rows, and logits of -inf or far from 0; then what exercise_elements.py has for the sigmoid
losses. `--quick` is for the sanitizers: short rows, and few that fill a cluster, several segments
or a queue. `--long` leaves the short rows out, whose ways no architecture has to itself.
"""

import sys
from itertools import product

import exercise_elements
import torch

import torchce_cuda as ce
from torchce_cuda import reference

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
LOSS_TOLERANCE = {F64: 1e-12, F32: 1e-5, BF16: 1e-5, F16: 1e-5}
GRAD_TOLERANCE = {F64: 1e-12, F32: 3e-6, BF16: 6e-3, F16: 1e-3}
ENTRY_TOLERANCE = {F64: 1e-11, F32: 3e-5, BF16: 5e-3, F16: 1e-3}
OPTIONS = [
    {},
    {"gamma": 1.5, "weight": True, "z_loss": 1e-3},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.1, "weight": True, "logit_scale": -1.3, "logit_softcap": 5.0},
    {"label_smoothing": 0.1, "gamma": 2.0},
    {"probabilities": True, "weight": True},
    {"probabilities": True, "gamma": 0.5},
    {"probabilities": True, "gamma": 2.0, "logit_scale": 2.5},
    {"label_smoothing": 0.1, "gamma": 1.0, "weight": True},
]
QUICK = [(9, 10), (5, 130), (3, 1001), (2, 2100), (2, 13, 5), (1, 40_001), (1, 1500, 3)]
MORE = [(3, 1), (40, 33), (3, 4096)]
LONG = [(2, 9001), (2, 20_001), (2, 50_257), (1, 131_072), (1, 270_001), (1, 5000, 3)]


def largest(error: torch.Tensor, size: torch.Tensor) -> float:
    return (error.abs().max() / size.abs().max().clamp_min(1e-30)).item()


def last_digit_of_cap(
    logits: torch.Tensor, grad: torch.Tensor, options: dict
) -> torch.Tensor | float:
    """What tanh's last digit in float32 changes in the gradient: much where 1 - tanh^2 is small."""
    if "logit_softcap" not in options:
        return 0.0
    part = (options["logit_scale"] * logits.detach() / options["logit_softcap"]).tanh()
    return torch.finfo(F32).eps * (grad / (1 - part**2)).abs()


def check(shape: tuple[int, ...], dtype: torch.dtype, options: dict, offset: int) -> None:
    options = dict(options)
    classes = shape[1]
    memory = torch.empty(offset + torch.Size(shape).numel(), dtype=dtype)[offset:]
    logits = memory.view(shape).copy_(3 * torch.randn(shape)).requires_grad_()
    if options.pop("probabilities", False):
        target = torch.rand(shape).softmax(1).to(dtype)
    else:
        target = torch.randint(classes, (shape[0], *shape[2:]))
        target[0] = -100 if shape[0] > 1 else 0
        if classes > 2 and "label_smoothing" not in options:
            with torch.no_grad():
                logits.select(1, 1)[target != 1] = -torch.inf
    if "weight" in options:
        options["weight"] = torch.rand(classes, dtype=torch.promote_types(dtype, F32))
    exact_options = {k: v.double() if k == "weight" else v for k, v in options.items()}
    exact_target = target.double() if target.is_floating_point() else target

    for reduction in ("mean", "none"):
        exact = logits.detach().double().requires_grad_()
        exact_loss = reference.cross_entropy(
            exact, exact_target, reduction=reduction, **exact_options
        )
        upstream = torch.linspace(-1, 2, exact_loss.numel(), dtype=F64).view_as(exact_loss)
        (exact_grad,) = torch.autograd.grad(exact_loss, exact, upstream)
        for inplace in (False, True):
            input = logits * 1 if inplace else logits
            loss = ce.cross_entropy(input, target, reduction=reduction, inplace=inplace, **options)
            (grad,) = torch.autograd.grad(loss, logits, upstream.to(loss))
            where = f"{shape} {dtype} {options.keys()} {offset=} {reduction} {inplace=}"
            assert largest(loss - exact_loss, exact_loss) <= LOSS_TOLERANCE[dtype], where
            error = (grad - exact_grad).abs() - last_digit_of_cap(exact, exact_grad, options)
            assert largest(error.clamp_min(0), exact_grad) <= GRAD_TOLERANCE[dtype], where
            if not (options.keys() & {"label_smoothing"} or target.is_floating_point()):
                # nothing cancels, so every entry by itself; float16 has no digits below 2^-14
                error = (grad - exact_grad).abs() - (6e-8 if dtype == F16 else 1e-30)
                assert (error <= ENTRY_TOLERANCE[dtype] * exact_grad.abs()).all(), where


def far_rows(classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Where exponentials cannot be taken relative to a power of two, or not in all of a row."""
    lowest, late = torch.finfo(dtype).min, 3 * classes // 4
    logits = (4 * torch.randn(7, classes)).round() / 2  # exact at 2^20 in float32
    logits[0, late] = 2.0**21
    logits[1] += 2.0**21
    logits[2] = lowest
    logits[3, ::2] = lowest
    logits[4] -= 2.0**21
    logits[5] += 2.0**20 - 20
    logits[5, late] = 2.0**20 + 2
    logits[6, :late] = -torch.inf
    logits[6, late:] -= 2.0**21
    return logits.to(dtype)


def check_far(classes: int, dtype: torch.dtype) -> None:
    logits = far_rows(classes, dtype).requires_grad_()
    target = torch.randint(3 * classes // 4, classes, (len(logits),))
    exact = logits.detach().double().requires_grad_()
    exact_loss = torch.nn.functional.cross_entropy(exact, target, reduction="none")
    (exact_grad,) = torch.autograd.grad(exact_loss.sum(), exact)
    for inplace in (False, True):
        input = logits * 1 if inplace else logits
        loss = ce.cross_entropy(input, target, reduction="none", inplace=inplace)
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        for row in range(len(logits)):
            where = f"far {classes} {dtype} {row=} {inplace=}"
            assert largest(loss[row] - exact_loss[row], exact_loss[row]) <= 1e-5, where
            error = largest(grad[row] - exact_grad[row], exact_grad[row])
            assert error <= GRAD_TOLERANCE[dtype], where


def main() -> None:
    assert "cuda_on_host" in ce.__file__, ce.__file__
    torch.manual_seed(0)
    quick, long = "--quick" in sys.argv, "--long" in sys.argv
    shapes = QUICK if quick else LONG if long else QUICK + MORE + LONG
    count = 0
    for shape, dtype, options in product(shapes, (F32, BF16, F16, F64), OPTIONS):
        if shape[1] > 9001 and (dtype in (F16, F64) or (quick and options not in OPTIONS[:5:2])):
            continue
        for offset in (0, 1) if len(shape) == 2 else (0,):
            check(shape, dtype, options, offset)
            count += 1
    for classes, dtype in product((9001,) if long else (130, 1001, 9001), (F32, BF16)):
        check_far(classes, dtype)
        count += 1
    if not long:
        count += exercise_elements.exercise(quick)
    print(f"{count} problems agree with float64")


main()
