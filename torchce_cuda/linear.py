"""Cross entropy of a linear layer's output without the output: argument rules and autograd.

One call goes through `linear_cross_entropy` -> `_LinearCrossEntropy` ->
`torch.ops.torchce.linear_cross_entropy` (`chunks.py`), which runs the GEMMs and the kernels of
`cross_entropy` chunk by chunk. Where that function takes the composition, this one does too.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _ops, arguments, chunks
from .arguments import NONE
from .functional import check_composition, composition, is_batched, runs_composition


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    normalizer: float | Tensor | None = None,
    chunk_rows: int | None = None,
    accumulate_dtype: torch.dtype | None = None,
) -> Tensor:
    """``cross_entropy(linear(input, linear_weight, linear_bias), target, ...)`` in little memory.

    The logits exist one chunk of rows at a time. For "mean" and "sum" the gradients are computed in
    the forward pass, chunk by chunk, of those inputs that need one: three matrix products in all,
    as in the separate route. For "none", and where float16 takes part (whose small gradients
    survive only with the loss scaler's factor), the backward pass computes the logits again: four.
    Without a gradient there is one.

    Args:
        input: hidden states of shape (D), (N, D) or (..., D) in any number of dimensions; float64,
            float32, bfloat16 or float16. Contiguous, or it is copied.
        linear_weight: the head's weight, (C, D), of the dtype of `input`; or (C, d1, ..., dk, D)
            with (N, D), for logits of shape (N, C, d1, ..., dk).
        target: class indices of the shape of `input` without D, followed by d1, ..., dk; or
            class probabilities, with C after the dimensions of the rows. On the CPU, rows whose
            target is `ignore_index` are left out of the products; on a CUDA device they are not,
            since their number would have to be waited for.
        linear_bias: the head's bias, of the shape of `linear_weight` without D.
        weight, ignore_index, reduction, label_smoothing, gamma, z_loss, logit_scale, logit_softcap,
            normalizer: as for `cross_entropy`; ignore_index None is -100, as for
            `torch.nn.functional.linear_cross_entropy`.
        chunk_rows: rows of logits that are alive at a time, at least 1. By default an eighth of
            the rows, or up to 512 where that is at most a quarter of them (on a CUDA device 4096,
            half of them), or so many that their logits are half as large as `linear_weight`;
            rounded up to a multiple of 16, or of 128 from 1024 on, and never more than 128 MiB of
            logits (2 GiB).
        accumulate_dtype: in which `linear_weight`'s gradient is summed over chunks: float32 by
            default (float64 for float64), or the dtype of `linear_weight`, which saves memory.

    Returns:
        The loss, 0-d or with the shape of the rows: float64 for float64 input, else float32. Under
        autocast the products are made in its dtype; a float32 head's gradient is the float32 sum
        over chunks, not rounded again.

    Note:
        Input, head and bias may need a gradient or not; a tied head (an embedding's weight) is
        passed as it is. Gradients made in the forward pass are those of the values then, whatever
        is written into them before backward. A second backward (``retain_graph=True``) computes
        everything again. Second derivatives, `torch.func` transforms, and gradients to `weight`,
        probabilities or `normalizer` take the composition of `torch.nn.functional.linear` and plain
        PyTorch, with its memory. Probabilities of float64 make the whole computation float64.

        A causal language model predicts the next token: see `next_token_target`.

    Raises:
        IndexError: a class index outside [0, C) that is not `ignore_index`.
        ValueError, RuntimeError, TypeError, NotImplementedError: for other bad arguments.
    """
    if ignore_index is None:
        ignore_index = -100
    options = arguments.operator_options(
        reduction, ignore_index, label_smoothing, gamma, z_loss, logit_scale, logit_softcap
    )
    arguments.check_floating("input", input)
    arguments.check_floating("linear_weight", linear_weight)
    arguments.check_tensor("target", target)
    if linear_bias is not None:
        arguments.check_floating("linear_bias", linear_bias)
    if normalizer is not None:
        normalizer = arguments.as_normalizer(normalizer, reduction)
    if weight is not None:
        arguments.check_weight(weight, target)
    if chunk_rows is not None:
        chunk_rows = arguments.as_integer("chunk_rows", chunk_rows)
        if chunk_rows < 1:
            raise ValueError(f"chunk_rows is {chunk_rows}, but must be at least 1")
    _ops.check_devices(
        input,
        linear_weight=linear_weight,
        target=target,
        linear_bias=linear_bias,
        weight=weight,
        normalizer=normalizer,
    )
    row_shape = _check_shapes(input, linear_weight, target, linear_bias)
    if target.dtype == torch.float64:
        input, linear_weight = input.double(), linear_weight.double()
        linear_bias = None if linear_bias is None else linear_bias.double()
    compute_dtype = _compute_dtype(input, linear_weight, linear_bias)

    num_classes, *positions = linear_weight.shape[:-1]
    rows = math.prod(input.shape[:-1])
    probabilities = target.is_floating_point()
    target = target.reshape(rows, *([num_classes] if probabilities else []), *positions)
    # Flat before autograd sees them, so that their gradients take the shape of the originals. And
    # views: a derivative by a tied embedding itself would count the path through it twice.
    outputs, features = math.prod(linear_weight.shape[:-1]), linear_weight.shape[-1]
    input = input.reshape(rows, features)
    linear_weight = linear_weight.reshape(outputs, features)
    linear_bias = None if linear_bias is None else linear_bias.reshape(outputs)

    inputs, others = (input, linear_weight, linear_bias), (target, weight, normalizer, options)
    plan = {
        "num_classes": num_classes,
        "compute_dtype": compute_dtype,
        "accumulate_dtype": _accumulate_dtype(accumulate_dtype, linear_weight, compute_dtype),
        "chunk_rows": chunk_rows,
    }
    if runs_composition(input, (target, weight, normalizer)):
        check_composition((rows, num_classes, *positions), compute_dtype, target, weight, options)
        loss = _composition(inputs, others, num_classes)
    elif torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        loss = _LinearCrossEntropy.apply(*inputs, others, plan)
    else:
        loss, *_ = _run(inputs, others, None, [False] * 3, plan)
    return loss.reshape(row_shape) if reduction == "none" else loss


def next_token_target(tokens: Tensor, ignore_index: int = -100) -> Tensor:
    """What a causal language model is to predict at each position: the token after it.

    Shifts class indices (..., T) by one position along the last dimension. The last position has no
    next token and gets `ignore_index`, so that hidden states and target keep one shape and nothing
    has to be cut off or copied: ``linear_cross_entropy(hidden, head, next_token_target(tokens))``.
    Returns a new tensor of the dtype of `tokens`.

    Raises:
        TypeError: `tokens` is no tensor of integers, or `ignore_index` no integer.
        ValueError: `tokens` has no last dimension, or its dtype cannot hold `ignore_index`.
    """
    arguments.check_tensor("tokens", tokens)
    if tokens.dim() == 0:
        raise ValueError("tokens is a scalar, but must be of shape (..., T)")
    if tokens.dtype == torch.bool or tokens.is_floating_point() or tokens.is_complex():
        raise TypeError(f"tokens has dtype {tokens.dtype}, but must hold class indices")
    ignore_index = arguments.as_integer("ignore_index", ignore_index)
    limits = torch.iinfo(tokens.dtype)
    if not limits.min <= ignore_index <= limits.max:
        raise ValueError(f"ignore_index is {ignore_index}, which {tokens.dtype} cannot hold")
    return F.pad(tokens[..., 1:], (0, min(tokens.shape[-1], 1)), value=ignore_index)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients in the forward pass where the upstream factor is one number that can wait.

    They are kept as attributes of `ctx` and handed out once, scaled in place: autograd may then
    write into them. What comes later (a second backward) is computed again. Under torch.compile
    they are saved tensors, which nobody writes into.
    """

    @staticmethod
    def forward(ctx, input, linear_weight, linear_bias, others, plan):
        *tensors, options = others
        early = _gradients_may_be_early(input, linear_weight, plan, options)
        wanted = _wanted(ctx) if early else [False] * 3
        inputs = (input, linear_weight, linear_bias)
        loss, *grads = _run(inputs, others, None, wanted, plan)
        traced = early and torch.compiler.is_compiling()
        ctx.grads = grads if early and not traced else None
        ctx.save_for_backward(*inputs, *tensors, *(grads if traced else ()))
        ctx.plan, ctx.options = plan, options
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        wanted = _wanted(ctx)
        grads, ctx.grads = ctx.grads, None
        if grads is not None and not torch.is_grad_enabled() and not is_batched(grad_loss):
            for grad, wants in zip(grads, wanted, strict=True):
                if wants:
                    _ops.scale_(grad.view(-1), grad_loss)
            return *_only(grads, wanted), None, None
        saved = ctx.saved_tensors  # once: hooks may make each access a copy, or refuse a second
        inputs, others, kept = saved[:3], (*saved[3:6], ctx.options), saved[6:] or grads
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grads = _differentiable_grads(inputs, others, grad_loss, wanted, ctx.plan)
        elif kept:
            grads = [(grad.to(grad_loss.dtype) * grad_loss).to(grad.dtype) for grad in kept]
        else:
            _, *grads = _run(inputs, others, grad_loss, wanted, ctx.plan)
        return *_only(grads, wanted), None, None


def _run(inputs, others, grad_loss, wanted, plan):
    input, linear_weight, linear_bias = inputs
    target, weight, normalizer, options = others
    tensors = (input, linear_weight, target, linear_bias, weight, normalizer, grad_loss)
    return chunks.linear_cross_entropy(*tensors, wanted=wanted, **plan, **options)


def _wanted(ctx) -> list[bool]:
    return list(ctx.needs_input_grad[:3])


def _only(grads, wanted):
    return [grad if wants else None for grad, wants in zip(grads, wanted, strict=True)]


def _gradients_may_be_early(input, linear_weight, plan, options) -> bool:
    dtypes = (input.dtype, linear_weight.dtype, plan["compute_dtype"])
    return options.get("reduction") != NONE and torch.float16 not in dtypes


def _composition(inputs, others, num_classes) -> Tensor:
    target, *rest = others
    shape = (target.shape[0], num_classes, *chunks.positions_of(target))
    return composition(F.linear(*inputs).reshape(shape), target, *rest)


def _differentiable_grads(inputs, others, grad_loss, wanted, plan):
    low = [None if x is None else x.to(plan["compute_dtype"]) for x in inputs]
    with torch.autocast(grad_loss.device.type, enabled=False):
        loss = _composition(low, others, plan["num_classes"])
    leaves = [x for x in _only(inputs, wanted) if x is not None]
    grads = iter(torch.autograd.grad(loss, leaves, grad_loss, create_graph=True))
    return [next(grads) if wants else None for wants in wanted]


def _check_shapes(input, linear_weight, target, linear_bias) -> tuple[int, ...]:
    """The shape of the loss row by row."""
    if input.dim() < 1:
        raise RuntimeError("input is a scalar, but must be of shape (D), (N, D) or (..., D)")
    if linear_weight.dim() < 2:
        raise RuntimeError(
            f"linear_weight has shape {list(linear_weight.shape)}, but must be of shape (C, D) or "
            "(C, d1, ..., dk, D)"
        )
    if input.shape[-1] != linear_weight.shape[-1]:
        raise RuntimeError(
            f"input has shape {list(input.shape)} and linear_weight {list(linear_weight.shape)}, "
            "but their last dimensions must be equal"
        )
    num_classes, *positions = linear_weight.shape[:-1]
    if linear_bias is not None and list(linear_bias.shape) != [num_classes, *positions]:
        raise RuntimeError(
            f"linear_bias has shape {list(linear_bias.shape)}, but must have shape "
            f"{[num_classes, *positions]}, that of linear_weight without its last dimension"
        )
    if positions and input.dim() != 2:
        raise RuntimeError(
            f"linear_weight has shape {list(linear_weight.shape)}, for which input must have shape "
            f"(N, D), not {list(input.shape)}"
        )
    batch = list(input.shape[:-1])
    indices, probabilities = [*batch, *positions], [*batch, num_classes, *positions]
    expected = probabilities if target.is_floating_point() else indices
    if list(target.shape) != expected:
        raise RuntimeError(
            f"target has shape {list(target.shape)} and dtype {target.dtype}, but must have shape "
            f"{indices} with class indices, or {probabilities} with floating class probabilities"
        )
    return tuple(indices)


def _compute_dtype(input, linear_weight, linear_bias) -> torch.dtype:
    """What the products are made in: autocast's dtype where it is on, as in F.linear."""
    device = input.device.type
    autocast = torch.is_autocast_enabled(device) if device in ("cpu", "cuda") else False

    def low(tensor):
        keeps = not autocast or tensor.dtype == torch.float64
        return tensor.dtype if keeps else torch.get_autocast_dtype(device)

    for name, tensor in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if tensor is not None and low(tensor) != low(input):
            raise RuntimeError(
                f"{name} has dtype {tensor.dtype}, but input has {input.dtype}; they must be equal"
            )
    return low(input)


def _accumulate_dtype(given, linear_weight, compute_dtype) -> torch.dtype:
    default = _ops.acc_dtype(compute_dtype)
    if given is None:
        return default
    allowed = {default, linear_weight.dtype}
    if given not in allowed:
        names = " or ".join(sorted(str(dtype) for dtype in allowed))
        raise ValueError(f"accumulate_dtype is {given!r}, but must be {names}")
    return given
