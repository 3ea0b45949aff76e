"""Sigmoid losses for labels that do not exclude each other: argument rules and autograd.

One call goes through `sigmoid_focal_loss` -> `_SigmoidFocal` ->
`torch.ops.torchce.sigmoid_focal_*`. Where `cross_entropy` takes plain PyTorch (`torch.func`
transforms, forward mode, second derivatives, gradients to anything but the logits), these losses
do too.
"""

import math

import torch
from torch import Tensor

from . import _ops, arguments, reference
from .functional import runs_composition


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    alpha: float | None = None,
    gamma: float = 2.0,
    pos_weight: Tensor | None = None,
    ignore_value: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss of independent yes-or-no labels: `torchvision.ops.sigmoid_focal_loss` and more.

    Per element, with p = sigmoid(input), u = target (1 - p) + (1 - target) p and
    a = alpha target + (1 - alpha) (1 - target):
    ``a weight u^gamma (pos_weight target (-log p) + (1 - target) (-log(1 - p)))``.
    Source: Lin et al., Focal Loss for Dense Object Detection, 2017.

    Args:
        input: logits of any shape and strides; float64, float32, bfloat16 or float16.
        target: of the shape of `input`; floating, int64, int32, uint8 or bool. Probabilities in
            [0, 1] are soft labels; outside, only gamma 0 and 2 are defined.
        weight: factor of each element, broadcast to the shape of `input`.
        alpha: in [0, 1], share of the positive labels in the balance with the negative ones; None
            or a negative number: no balance. torchvision's default is 0.25.
        gamma: focal modulation, any finite number >= 0; 0 is binary cross entropy.
        pos_weight: factor of the positive part, broadcast to the shape of `input`: one value per
            class where classes come last.
        ignore_value: elements with this target (as rounded to the target's dtype) have loss and
            gradient exactly 0, and do not count in the mean.
        reduction: "mean" (over the elements that count), "sum" or "none". torchvision's default is
            "none".

    Returns:
        The loss, 0-d or of the shape of `input`: float64 where `input` or `target` is float64, else
        float32, where PyTorch rounds to the dtype of a 16-bit input. An infinite logit that its
        target agrees with costs 0, where PyTorch's formula gives NaN.

    Raises:
        ValueError, RuntimeError, TypeError, NotImplementedError: for bad arguments.
    """
    options = {"reduction": arguments.reduction_number(reduction)}
    arguments.check_floating("input", input)
    arguments.check_tensor("target", target)
    if target.shape != input.shape:
        raise ValueError(
            f"target has shape {list(target.shape)}, but must have the shape of input, "
            f"{list(input.shape)}"
        )
    if gamma != 0.0:
        options["gamma"] = arguments.as_number("gamma", gamma)
    if alpha is not None:
        options["alpha"] = arguments.as_number("alpha", alpha)
    if ignore_value is not None:
        options["ignore_value"] = arguments.as_number("ignore_value", ignore_value)
        if math.isnan(options["ignore_value"]):
            raise ValueError("ignore_value is nan, which equals no target")
    if target.dtype == torch.float64 and input.dtype != torch.float64:
        input = input.double()
    weight = _broadcast("weight", weight, input)
    pos_weight = _broadcast("pos_weight", pos_weight, input)

    others = (target, weight, pos_weight)
    if runs_composition(input, others):
        _ops.check_devices(input, target=target, weight=weight, pos_weight=pos_weight)
        # the operator's checks of options and dtypes, on no elements
        nothing = (
            None if x is None else torch.empty(0, dtype=x.dtype, device="cpu")
            for x in (input, *others)
        )
        _ops.sigmoid_forward(*nothing, **options)
        return _composition(input, others, options)
    if input.requires_grad and torch.is_grad_enabled():
        return _SigmoidFocal.apply(input, others, options)
    return _ops.sigmoid_forward(input, *others, **options)[0]


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pos_weight: Tensor | None = None,
    ignore_value: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """`torch.nn.functional.binary_cross_entropy_with_logits`: sigmoid and log in one pass.

    `sigmoid_focal_loss` with gamma 0 and without alpha; see there for shapes, dtypes and errors.
    """
    return sigmoid_focal_loss(
        input,
        target,
        weight,
        gamma=0.0,
        pos_weight=pos_weight,
        ignore_value=ignore_value,
        reduction=reduction,
    )


class _SigmoidFocal(torch.autograd.Function):
    """Two passes; forward keeps its inputs and one number."""

    @staticmethod
    def forward(ctx, input, others, options):
        loss, divisor = _ops.sigmoid_forward(input, *others, **options)
        ctx.save_for_backward(input, *others, divisor)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        input, *others, divisor = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            loss = _composition(input, others, ctx.options)
            (grad,) = torch.autograd.grad(loss, input, grad_loss, create_graph=True)
        else:
            target, *weights = others
            grad_loss = grad_loss.expand(input.shape)
            grad = _ops.sigmoid_backward(grad_loss, input, target, divisor, *weights, **ctx.options)
        return grad, None, None


def _composition(input, others, options) -> Tensor:
    target, weight, pos_weight = others
    options = {"gamma": 0.0, **options}
    reduction = arguments.REDUCTION_NAMES[options.pop("reduction")]
    return reference.sigmoid_focal_loss(
        input, target, weight, pos_weight=pos_weight, reduction=reduction, **options
    )


def _broadcast(name: str, value: Tensor | None, input: Tensor) -> Tensor | None:
    if value is None:
        return None
    arguments.check_tensor(name, value)
    try:
        return value.expand(input.shape)
    except RuntimeError:
        raise RuntimeError(
            f"{name} has shape {list(value.shape)}, which cannot be broadcast to the shape of "
            f"input, {list(input.shape)}"
        ) from None
