"""Problems of `linear_cross_entropy`, and how exact their results must be."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
import torch.nn.functional as F
from accuracy import TORCH_ARGUMENTS, on_one_thread
from cases import F32, OPTIONS, WEIGHTS
from torch import Tensor

from torchce_cuda import reference

Result = dict[str, Tensor]  # "loss", "grad_hidden", "grad_head", "grad_bias"
LEAVES = ("hidden", "head", "bias")
ROWS, FEATURES, CLASSES = 41, 24, 131


@dataclass(frozen=True)
class LinearProblem:
    """Of `linear_cross_entropy(hidden, head, target, linear_bias=bias, weight=weight, ..)`."""

    hidden: Tensor  # [N, D]
    head: Tensor  # [C, D]
    bias: Tensor  # [C]
    target: Tensor  # [N], or [N, C]
    weight: Tensor | None
    arguments: MappingProxyType
    grad_loss: Tensor  # of the shape of the loss, float64

    def to(self, dtype: torch.dtype) -> "LinearProblem":
        names = ("hidden", "head", "bias", "target", "weight")
        return replace(self, **{name: _convert(getattr(self, name), dtype) for name in names})


def make_linear_problem(
    option_name: str,
    dtype: torch.dtype,
    probabilities: bool = False,
    rows: int = ROWS,
    device: torch.device | str = "cpu",
) -> LinearProblem:
    option = OPTIONS[option_name]
    generator = torch.Generator().manual_seed(len(option_name) + rows)

    def normal(*shape: int, std: float) -> Tensor:
        return (std * torch.randn(*shape, generator=generator)).to(dtype)

    target = torch.randint(CLASSES, (rows,), generator=generator)
    target[::5] = -100
    if probabilities:
        target = normal(rows, CLASSES, std=2.0).float().softmax(1).to(dtype)
    weight = None
    if option.weight is not None:
        weight = WEIGHTS[option.weight](torch.rand(CLASSES, generator=generator)).to(dtype)
    scalar = option.arguments.get("reduction", "mean") != "none"
    return LinearProblem(
        normal(rows, FEATURES, std=1.0).to(device),
        normal(CLASSES, FEATURES, std=0.6).to(device),  # logits of standard deviation 3
        normal(CLASSES, std=0.5).to(device),
        target.to(device),
        None if weight is None else weight.to(device),
        option.arguments,
        torch.randn(() if scalar else (rows,), generator=generator).double().to(device),
    )


def evaluate(function: Callable[..., Tensor], problem: LinearProblem, **more) -> Result:
    """Loss and gradients of `function(hidden, head, target, linear_bias=, weight=, ..)`."""
    leaves = [getattr(problem, name).detach().requires_grad_() for name in LEAVES]
    hidden, head, bias = leaves
    arguments = {**problem.arguments, **more}
    loss = function(
        hidden, head, problem.target, linear_bias=bias, weight=problem.weight, **arguments
    )
    grads = torch.autograd.grad(loss, leaves, problem.grad_loss.to(loss.dtype))
    named = {f"grad_{name}": grad for name, grad in zip(LEAVES, grads, strict=True)}
    return {"loss": loss.detach(), **named}


def by_reference(hidden, head, target, *, linear_bias, **arguments) -> Tensor:
    return reference.cross_entropy(F.linear(hidden, head, linear_bias), target, **arguments)


def by_torch(hidden, head, target, *, linear_bias, **arguments) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head, linear_bias), target, **arguments)


@on_one_thread()
def assert_as_accurate_as_torch(ours: Result, problem: LinearProblem) -> None:
    """At most twice the error of the better of PyTorch's routes, largest and mean square.

    Both are taken for the classes that are some row's target and for the others apart, whose
    gradients are far smaller. The floor is one rounding of the size; in float64 some, since truth
    and rivals round as we do.
    """
    truth = evaluate(by_reference, problem.to(torch.float64))
    rivals = [evaluate(by_reference, problem)]
    if problem.arguments.keys() <= TORCH_ARGUMENTS:
        rivals.append(evaluate(by_torch, problem))
    dtype = problem.hidden.dtype
    floor = torch.finfo(dtype).eps * (32 if dtype == torch.float64 else 1)
    for name, value in ours.items():
        exact = truth[name]
        assert value.shape == exact.shape, f"{name}: {value.shape}, expected {exact.shape}"
        leaf = problem.hidden if name == "loss" else getattr(problem, name.removeprefix("grad_"))
        expected = torch.promote_types(leaf.dtype, F32) if name == "loss" else leaf.dtype
        assert value.dtype == expected, f"{name}: {value.dtype}, expected {expected}"
        for part, mask in _parts(name, problem):
            x, y = value[mask].double(), exact[mask]
            theirs = [rival[name][mask].double() for rival in rivals]
            for kind, size in (("largest", _largest), ("mean square", _mean_square)):
                error, allowed = size(x - y), 2 * min(size(z - y) for z in theirs)
                allowed += floor * size(y)
                assert error <= allowed, f"{name}, {part}: {kind} {error:.3g} > {allowed:.3g}"


def _parts(name: str, problem: LinearProblem):
    if name in ("loss", "grad_hidden") or problem.target.is_floating_point():
        yield "all", slice(None) if name != "loss" or problem.grad_loss.dim() else ...
        return
    is_target = torch.zeros(CLASSES, dtype=torch.bool, device=problem.target.device)
    is_target[problem.target[problem.target >= 0]] = True
    yield "classes that are a target", is_target
    yield "other classes", ~is_target


def _largest(x: Tensor) -> float:
    return x.abs().nan_to_num(nan=torch.inf).max().item()


def _mean_square(x: Tensor) -> float:
    return x.nan_to_num(nan=torch.inf).square().mean().sqrt().item()


def _convert(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return x if x is None or not x.is_floating_point() else x.to(dtype)
