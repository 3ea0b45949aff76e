"""The operators of the compiled library, and their outputs' metadata for tracing.

Private: an operator called on a tensor that requires grad records nothing; `functional` is the
door.
"""

import torch

from . import _ops_library  # noqa: F401  (loading it registers torch.ops.torchce)
from .arguments import MEAN, NONE

forward = torch.ops.torchce.cross_entropy_forward.default
backward = torch.ops.torchce.cross_entropy_backward.default
backward_ = torch.ops.torchce.cross_entropy_backward_.default
forward_backward = torch.ops.torchce.cross_entropy_forward_backward.default
forward_backward_ = torch.ops.torchce.cross_entropy_forward_backward_.default
divisor = torch.ops.torchce.cross_entropy_divisor.default
sigmoid_forward = torch.ops.torchce.sigmoid_focal_forward.default
sigmoid_backward = torch.ops.torchce.sigmoid_focal_backward.default
scale_ = torch.ops.torchce.scale_.default
check_targets = torch.ops.torchce.check_targets.default


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of accumulators and of the loss, where the logits have `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _class_dim(logits: torch.Tensor) -> int:
    return 1 if logits.dim() > 1 else 0


def check_devices(
    input: torch.Tensor, *, normalizer: torch.Tensor | None = None, **others: torch.Tensor | None
) -> None:
    """An operator is not told of a meta tensor among its arguments: the dispatcher calls the fake.

    The normalizer may be on the CPU beside any input.
    """
    if normalizer is not None and not normalizer.is_cpu:
        others["normalizer"] = normalizer
    for name, other in others.items():
        if other is not None and other.device != input.device:
            raise RuntimeError(f"{name} is on {other.device}, but input is on {input.device}")


@torch.library.register_fake("torchce::cross_entropy_forward")
def _(
    logits,
    target,
    weight=None,
    normalizer=None,
    *,
    reduction=MEAN,
    label_smoothing=0.0,
    gamma=0.0,
    **options,
):
    check_devices(logits, target=target, weight=weight, normalizer=normalizer)
    row_shape = list(logits.shape)
    del row_shape[_class_dim(logits)]
    rows = 1
    for size in row_shape:
        rows = rows * size
    probabilities = target.dim() == logits.dim()
    planes = 4 if gamma > 0 and (label_smoothing > 0 or probabilities) else 3
    loss = logits.new_empty(row_shape if reduction == NONE else [], dtype=acc_dtype(logits.dtype))
    divisor = 1 if reduction == MEAN else 0
    return loss, logits.new_empty([divisor + planes * rows], dtype=acc_dtype(logits.dtype))


@torch.library.register_fake("torchce::cross_entropy_backward")
def _(grad_loss, logits, target, state, weight=None, **options):
    check_devices(logits, target=target, weight=weight, grad_loss=grad_loss, state=state)
    return torch.empty_like(logits)


@torch.library.register_fake("torchce::cross_entropy_backward_")
def _(grad_loss, logits, target, state, weight=None, **options):
    check_devices(logits, target=target, weight=weight, grad_loss=grad_loss, state=state)
    return None


@torch.library.register_fake("torchce::cross_entropy_forward_backward")
def _(logits, target, weight=None, normalizer=None, **options):
    check_devices(logits, target=target, weight=weight, normalizer=normalizer)
    return logits.new_empty([], dtype=acc_dtype(logits.dtype)), torch.empty_like(logits)


@torch.library.register_fake("torchce::cross_entropy_forward_backward_")
def _(logits, target, weight=None, normalizer=None, **options):
    check_devices(logits, target=target, weight=weight, normalizer=normalizer)
    return logits.new_empty([], dtype=acc_dtype(logits.dtype))


@torch.library.register_fake("torchce::cross_entropy_divisor")
def _(logits, target, weight=None, normalizer=None, **options):
    check_devices(logits, target=target, weight=weight, normalizer=normalizer)
    return logits.new_empty([], dtype=acc_dtype(logits.dtype))


@torch.library.register_fake("torchce::sigmoid_focal_forward")
def _(logits, target, weight=None, pos_weight=None, *, reduction=MEAN, **options):
    check_devices(logits, target=target, weight=weight, pos_weight=pos_weight)
    loss_shape = logits.shape if reduction == NONE else []
    dtype = acc_dtype(logits.dtype)
    return logits.new_empty(loss_shape, dtype=dtype), logits.new_empty([], dtype=dtype)


@torch.library.register_fake("torchce::sigmoid_focal_backward")
def _(grad_loss, logits, target, divisor, weight=None, pos_weight=None, **options):
    check_devices(logits, target=target, weight=weight, pos_weight=pos_weight, grad_loss=grad_loss)
    return torch.empty_like(logits)


@torch.library.register_fake("torchce::scale_")
def _(values, factor):
    check_devices(values, factor=factor)
    return None
