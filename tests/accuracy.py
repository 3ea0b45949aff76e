"""How exact a result must be: at most twice PyTorch's own error against float64.

A fixed tolerance is blind where it matters: off-target gradients are about 1/C of those at the
target, so with many classes it accepts them as zeros. Here each kind of number is measured against
its own size and against what the same arithmetic can reach; `test_accuracy.py` plants mistakes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from cases import Problem
from torch import Tensor

from torchce_cuda import reference

Result = dict[str, Tensor]  # "loss", and "grad_input", "grad_target", "grad_weight" as asked for

TORCH_ARGUMENTS = {"ignore_index", "reduction", "label_smoothing"}


@contextmanager
def on_one_thread() -> Iterator[None]:
    """On a busy machine the threads of many small operations wait for each other, not for us."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def evaluate(
    function: Callable[..., Tensor],
    problem: Problem,
    wrt: tuple[str, ...] = ("input",),
    dtype: torch.dtype | None = None,
) -> Result:
    """The loss of `function` and its gradients to the tensors named in `wrt`.

    With `dtype` the tensors are converted before the call: the gradients still come back in the
    dtypes of the problem, rounded once.
    """
    leaves = dict(zip(("input", "target", "weight"), problem.tensors, strict=True))
    for name in wrt:
        leaves[name] = leaves[name].detach().requires_grad_()
    loss = function(*(_convert(x, dtype) for x in leaves.values()), **problem.arguments)
    result = {"loss": loss.detach()}
    if wrt:
        wanted = [leaves[name] for name in wrt]
        grads = torch.autograd.grad(loss, wanted, problem.grad_loss.to(loss.dtype))
        result |= {f"grad_{name}": grad for name, grad in zip(wrt, grads, strict=True)}
    return result


@on_one_thread()
def exact_result(problem: Problem, wrt: tuple[str, ...] = ("input",)) -> Result:
    """The float64 reference of the same, already rounded, inputs; itself never rounded again."""
    input, target, weight = (_convert(x, torch.float64) for x in problem.tensors)
    problem = replace(problem, input=input, target=target, weight=weight)
    return evaluate(reference.cross_entropy, problem, wrt)


@on_one_thread()
def torch_results(problem: Problem, wrt: tuple[str, ...] = ("input",)) -> list[Result]:
    """What PyTorch operations reach in our arithmetic: float32, or float64 for float64 inputs.

    `F.cross_entropy` where it has the options, and in any case `reference.cross_entropy`: at p -> 1
    the former has lost every digit, and twice that error would accept anything. Nor may 16-bit
    inputs be left to PyTorch's 16-bit path, which rounds log p.
    """
    dtype = torch.promote_types(problem.input.dtype, torch.float32)
    functions = [reference.cross_entropy]
    if problem.arguments.keys() <= TORCH_ARGUMENTS and problem.input.numel() > 0:
        functions.append(_torch_cross_entropy)
    return [evaluate(function, problem, wrt, dtype) for function in functions]


@on_one_thread()
def assert_as_accurate_as_torch(
    ours: Result, problem: Problem, truth: Result, rivals: list[Result]
) -> None:
    """Checks shape, dtype, the places of NaN and inf, and each kind of number by its largest error.

        max|ours - truth| <= 2 max|rival - truth| + floor max|truth|

    The rival is the better one, and the floor is what a lucky rival leaves us: one rounding of the
    result and some on the way. Where no number is the small difference of two large ones, the same
    must hold of each relative to itself, because the largest would hide all others. Where it is,
    what was subtracted has been rounded on the way too.
    """
    accumulator = torch.finfo(ours["loss"].dtype)
    for name, value in ours.items():
        exact = truth[name]
        assert value.shape == exact.shape, f"{name}: {value.shape}, expected {exact.shape}"
        expected = _expected_dtype(name, problem)
        assert value.dtype == expected, f"{name}: {value.dtype}, expected {expected}"
        result = torch.finfo(value.dtype)
        floor = result.eps + _roundings(problem) * accumulator.eps
        # Numbers below are allowed to underflow; within the accumulator exp may flush them to 0.
        tiny = result.tiny + accumulator.tiny / accumulator.eps
        for part, mask in _parts(name, problem):
            x, y = value[mask].double(), exact[mask]
            finite = y.isfinite()
            where = f"{name}, {part}"
            torch.testing.assert_close(
                x[~finite], y[~finite], rtol=0, atol=0, equal_nan=True, msg=f"{where}: inf or NaN"
            )
            x, y = x[finite], y[finite]
            theirs = [rival[name][mask][finite].double() for rival in rivals]
            sizes = {"absolute": torch.ones_like(y)}
            if not cancels(problem):
                sizes["relative"] = y.abs() + tiny
            for kind, size in sizes.items():
                error = _largest((x - y) / size)
                allowed = 2 * min(_largest((z - y) / size) for z in theirs)
                allowed += floor * _largest(y / size)
                if name == "grad_input" and kind == "absolute":
                    allowed += _roundings(problem) * accumulator.eps * _cancelled(problem)
                assert error <= allowed, f"{where}: {kind} error {error:.3g} > {allowed:.3g}"


def check(ours: Result, problem: Problem) -> None:
    """`assert_as_accurate_as_torch` of a result that has not yet got its truth."""
    wrt = tuple(name.removeprefix("grad_") for name in ours if name != "loss")
    assert_as_accurate_as_torch(
        ours, problem, exact_result(problem, wrt), torch_results(problem, wrt)
    )


def assert_same_bits(x: Tensor, y: Tensor) -> None:
    """NaN equals NaN, 0 differs from -0."""
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    as_integers = getattr(torch, f"int{8 * x.dtype.itemsize}")
    assert torch.equal(x.contiguous().view(as_integers), y.contiguous().view(as_integers))


def _torch_cross_entropy(input: Tensor, target: Tensor, *rest, **arguments) -> Tensor:
    # PyTorch has no int32 target, and takes uint8 in one or two dimensions alone.
    target = target if target.is_floating_point() else target.long()
    return F.cross_entropy(input, target, *rest, **arguments)


def _convert(x: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    return x if dtype is None or x is None or not x.is_floating_point() else x.to(dtype)


def _expected_dtype(name: str, problem: Problem) -> torch.dtype:
    if name == "loss":
        return torch.promote_types(problem.input.dtype, torch.float32)
    return getattr(problem, name.removeprefix("grad_")).dtype


def _roundings(problem: Problem) -> float:
    """On the way: sum, argument of exp, exp, factor. In float64 rivals and truth round as we do.

    (1 - p)^gamma is exp(gamma log(1 - p)), which multiplies a rounding by the exponent.
    """
    ours = 4 + 10 * problem.arguments.get("gamma", 0)
    return 8 * ours if problem.input.dtype == torch.float64 else ours


def cancels(problem: Problem) -> bool:
    """Whether p_j sum(s) - s_j, or the slope of the soft cap, subtracts what may be equal."""
    options = {"label_smoothing", "logit_softcap", "z_loss"}
    return not problem.case.has_class_indices or not options.isdisjoint(problem.arguments)


def _cancelled(problem: Problem) -> float:
    """Size of the p_j and s_j whose difference an entry is, where smoothing makes every s_j alike.

    At equal logits nothing is left of them, and PyTorch may be lucky and find exactly 0.
    """
    classes = max(problem.case.num_classes, 1)
    rows = problem.input.numel() / classes
    upstream = _largest(problem.grad_loss.double())
    if problem.arguments.get("reduction", "mean") == "mean":
        upstream /= max(rows, 1)
    return upstream * problem.arguments.get("label_smoothing", 0.0) / classes


def _parts(name: str, problem: Problem) -> Iterator[tuple[str, Tensor]]:
    """Masks of the numbers that are of one size: at the target, off it, and in ignored rows."""
    case, target = problem.case, problem.target
    if name != "grad_input":
        like = problem.grad_loss if name == "loss" else getattr(problem, name.removeprefix("grad_"))
        yield "all", torch.ones_like(like, dtype=torch.bool)
    elif case.has_class_indices:
        target = target.long().unsqueeze(case.class_dim)
        classes = torch.arange(case.num_classes, device=target.device)
        classes = classes.view(-1, *(1,) * (len(case.shape) - case.class_dim - 1))
        counted = target != problem.arguments.get("ignore_index", -100)
        yield "at the target", (classes == target) & counted
        yield "off the target", (classes != target) & counted
        yield "ignored", (~counted).expand(case.shape)
    else:
        yield "at the target", target > 0
        yield "off the target", target == 0


def _largest(x: Tensor) -> float:
    """A NaN is infinitely far from a number."""
    return x.abs().nan_to_num(nan=torch.inf).max().item() if x.numel() else 0.0
