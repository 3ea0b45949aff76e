"""What the public functions accept: each rule once, each error with the name of its argument.

Shapes of logits and target, weights and the ranges of options are the operators' business
(`csrc/checks.h`); here is what has to be known before one is called.
"""

import math
from numbers import Real
from operator import index

import torch
from torch import Tensor

NONE, MEAN, SUM = 0, 1, 2  # the operators' reduction argument
_REDUCTIONS = {"none": NONE, "mean": MEAN, "sum": SUM}
REDUCTION_NAMES = {number: name for name, number in _REDUCTIONS.items()}
_FLOATING = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


def reduction_number(reduction) -> int:
    number = _REDUCTIONS.get(reduction) if isinstance(reduction, str) else None
    if number is None:
        raise ValueError(f"reduction is {reduction!r}, but must be 'none', 'mean' or 'sum'")
    return number


def operator_options(
    reduction, ignore_index, label_smoothing, gamma, z_loss, logit_scale, logit_softcap
) -> dict:
    """What differs from the operators' defaults: each argument handed over costs 0.15 us."""
    number = reduction_number(reduction)
    options: dict = {}
    if number != MEAN:
        options["reduction"] = number
    if ignore_index != -100:
        options["ignore_index"] = as_integer("ignore_index", ignore_index)
    if label_smoothing != 0.0:
        options["label_smoothing"] = as_number("label_smoothing", label_smoothing)
    if gamma != 0.0:
        options["gamma"] = as_number("gamma", gamma)
    if z_loss != 0.0:
        options["z_loss"] = as_number("z_loss", z_loss)
    if logit_scale != 1.0:
        options["logit_scale"] = as_number("logit_scale", logit_scale)
    if logit_softcap is not None:
        options["logit_softcap"] = _as_positive("logit_softcap", logit_softcap)
    return options


def check_floating(name: str, value) -> None:
    check_tensor(name, value)
    if value.dtype not in _FLOATING:
        raise NotImplementedError(
            f"{name} has dtype {value.dtype}, but must be float64, float32, bfloat16 or float16"
        )


def check_tensor(name: str, value) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, not {type(value).__name__}")


def check_weight(weight, target: Tensor) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a Tensor or None, not {type(weight).__name__}")
    if weight.requires_grad and torch.is_grad_enabled() and not target.is_floating_point():
        raise RuntimeError(
            "weight requires grad, but the loss is not differentiable in it with class indices; "
            "pass weight.detach()"
        )


def as_normalizer(value, reduction: str) -> Tensor:
    """The operators' float64 scalar."""
    if reduction != "mean":
        raise ValueError(f"normalizer needs reduction='mean', got reduction={reduction!r}")
    if not isinstance(value, Tensor):
        return torch.tensor(_as_positive("normalizer", value), dtype=torch.float64, device="cpu")
    if value.dim() != 0:
        raise ValueError(f"normalizer has shape {list(value.shape)}, but must be 0-d")
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"normalizer has dtype {value.dtype}, but must be floating or integer")
    return value.to(torch.float64)


def as_integer(name: str, value) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not bool")
    try:
        value = index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}") from None
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is {value}, but must fit 64 bits")
    return value


def as_number(name: str, value) -> float:
    if not isinstance(value, Real | torch.SymFloat):
        raise TypeError(f"{name} must be a float, not {type(value).__name__}")
    return float(value)


def _as_positive(name: str, value) -> float:
    value = as_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}, but must be a finite number > 0")
    return value
