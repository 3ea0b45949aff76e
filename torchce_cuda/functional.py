"""Cross entropy as a function: argument rules, the autograd contract, the choice of route.

One call goes through `cross_entropy` -> `_CrossEntropy` -> `torch.ops.torchce.*`. The Function is
written in Python rather than registered on the operator: 12 to 15 us less per step, and the
operators stay free of autograd. Where plain PyTorch serves better (inside `torch.func` transforms,
in forward mode, for a second derivative, for gradients to weight, probabilities or normalizer) the
composition in `reference` takes over; it is the same mathematics.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _ops, arguments, reference
from .arguments import MEAN, NONE

_SMALL = 4096  # logits: up to here a forward and backward pass costs less than one more call
_transforms_active = torch._C._are_functorch_transforms_active


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    normalizer: float | Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Cross entropy between logits and targets: `torch.nn.functional.cross_entropy` and more.

    Per row, with z = softcap(logit_scale * input), p = softmax(z), t the target after smoothing:
    ``sum_j t_j w_j (1 - p_j)^gamma (-log p_j) + z_loss * logsumexp(z)^2``.

    Args:
        input: logits of shape (C), (N, C) or (N, C, d1, ..., dk); float64, float32, bfloat16 or
            float16; any strides, read where they lie.
        target: class indices (int64, int32 or uint8) of the shape of `input` without C, or class
            probabilities of the shape of `input`. Gradients flow to probabilities.
        weight: one factor per class, shape (C), floating. Differentiable with probabilities only.
        ignore_index: rows with this class index have loss and gradient exactly 0.
        reduction: "none" (a loss per row), "mean" (class indices: divided by the sum of the weights
            of the rows that count; probabilities: by the number of rows) or "sum".
        label_smoothing: in [0, 1]; mixes the target with the uniform distribution.
        gamma: focal modulation, any finite number >= 0 (Lin et al., Focal Loss for Dense Object
            Detection, 2017); 0 is plain cross entropy.
        z_loss: factor of ``logsumexp(z)^2``, per row that counts, without class weight (Chowdhery
            et al., PaLM, 2022).
        logit_scale: factor of the logits.
        logit_softcap: ``c * tanh(z / c)`` on the scaled logits, c > 0 (Gemma Team, Gemma 2, 2024).
        normalizer: float > 0 or 0-d tensor (whose value is not looked at) that the sum is divided
            by in place of the mean's own divisor, for gradient accumulation; with reduction="mean"
            only.
        inplace: the call consumes the logits: their memory becomes their gradient's, which saves
            the gradient's memory, and for "mean" and "sum" of any dtype but float16 also one read
            of the logits, since the gradient is then computed in the forward pass. Afterwards the
            logits' values are undefined; a later use of them by autograd, or a second backward,
            raises. So do logits that cannot be overwritten, and a target, weight or normalizer that
            wants a gradient beside them. Ignored where no gradient is needed, in forward mode,
            under torch.compile and torch.func.

    Returns:
        The loss, 0-d or with the shape of the rows: float64 for float64 input, else float32, where
        PyTorch rounds to the dtype of a 16-bit input.

    Raises:
        IndexError: a class index outside [0, C) that is not `ignore_index`.
        ValueError, RuntimeError, TypeError, NotImplementedError: as PyTorch for bad arguments.
    """
    options = arguments.operator_options(
        reduction, ignore_index, label_smoothing, gamma, z_loss, logit_scale, logit_softcap
    )
    arguments.check_floating("input", input)
    arguments.check_tensor("target", target)
    if normalizer is not None:
        normalizer = arguments.as_normalizer(normalizer, reduction)
    if weight is not None:
        arguments.check_weight(weight, target)
    if target.dtype == torch.float64 and input.dtype != torch.float64:
        input = input.double()

    if runs_composition(input, (target, weight, normalizer)):
        if inplace and input.requires_grad and torch.is_grad_enabled():
            _refuse_in_place(target=target, weight=weight, normalizer=normalizer)
        _ops.check_devices(input, target=target, weight=weight, normalizer=normalizer)
        check_composition(input.shape, input.dtype, target, weight, options)
        return composition(input, target, weight, normalizer, options)
    if not (input.requires_grad and torch.is_grad_enabled()):
        return _ops.forward(input, target, weight, normalizer, **options)[0]
    if torch.compiler.is_compiling():
        return _CrossEntropy.apply(input, (target, weight, normalizer, options))
    if inplace:
        others = (input.shape, target, weight, normalizer, options)
        return _record_in_place(_overwritable(input), others)[0]
    return _record(input, (target, weight, normalizer, options))


def check_targets(enabled: bool | None = None) -> None:
    """Raises what is wrong with class indices so far; sets when it is to be raised from now on.

    A class index that is neither in [0, C) nor `ignore_index` never becomes an address. On the CPU
    it raises IndexError at once, always. On a CUDA device the call goes on without waiting: loss
    and gradient of the row become NaN, and a later call of this package on the same device, once
    the device has got that far, raises IndexError with the row and the index.

    Where no later call follows, as after the last batch of an evaluation, ``check_targets()`` waits
    for the current stream of each device and raises what has been found. So do the other two. What
    runs on another stream is told once that stream has got there. A device whose current stream is
    being captured in a CUDA graph is left out.

    Args:
        enabled: True makes every call on a CUDA device look at its targets first, wait for the
            answer and raise before any logit is touched, as on the CPU: for debugging, since it
            costs a synchronisation a call. It has no effect on a call that is captured in a CUDA
            graph; what a replay of the graph finds is raised by the next call outside. False, as
            at the beginning, makes no call wait. None leaves it as it is.

    Raises:
        IndexError: an earlier call had a bad class index.
    """
    _ops.check_targets(enabled)


class _CrossEntropy(torch.autograd.Function):
    """Two passes: forward keeps 12 or 16 bytes a row, backward makes the gradient.

    A problem of a few KiB on the CPU is nothing but calls, so there forward makes the gradient too,
    for the 1 that `loss.backward()` sends; anything else that arrives takes the long way.

    `others` is (target, weight, normalizer, options): one argument instead of four, since autograd
    has nothing to do with them and every argument and saved tensor costs a small call 0.2 us.
    """

    @staticmethod
    def forward(ctx, input, others):
        target, weight, normalizer, options = others
        ctx.early_grad = state = None
        if input.numel() <= _SMALL and _gradient_may_be_early(input, options):
            loss, ctx.early_grad = _ops.forward_backward(
                input, target, weight, normalizer, **options
            )
        else:
            loss, state = _ops.forward(input, target, weight, normalizer, **options)
        if weight is None and normalizer is None:
            ctx.save_for_backward(input, target, state)
        else:
            ctx.save_for_backward(input, target, state, weight, normalizer)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grad, ctx.early_grad = ctx.early_grad, None  # once: autograd may go on to write into it
        if grad is not None and _is_one(grad_loss) and not torch.is_grad_enabled():
            return grad, None
        input, target, state, *rest = ctx.saved_tensors
        weight, normalizer = rest or (None, None)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grad = _differentiable_grad(input, target, weight, normalizer, ctx.options, grad_loss)
        else:
            if state is None:
                _, state = _ops.forward(input, target, weight, normalizer, **ctx.options)
            grad = _ops.backward(grad_loss, input, target, state, weight, **ctx.options)
        return grad, None


def _is_one(grad_loss: Tensor) -> bool:
    # a fake tensor has no value, a batched one has several
    return type(grad_loss) is Tensor and not is_batched(grad_loss) and grad_loss.item() == 1.0


def _gradient_may_be_early(input, options) -> bool:
    return (
        input.is_cpu
        and input.dtype in (torch.float32, torch.float64)  # 16-bit: rounded once, with grad_loss
        and options.get("reduction") != NONE
        and not torch.compiler.is_compiling()
    )


class _CrossEntropyInPlace(torch.autograd.Function):
    """The gradient is written over the logits.

    `whole` is the tensor that owns the logits' memory: marked dirty and returned beside the loss,
    so that autograd sends the gradient of any later use of the logits here, where it is refused.
    """

    @staticmethod
    def forward(ctx, whole, others):
        shape, target, weight, normalizer, options = others
        ctx.mark_dirty(whole)
        ctx.set_materialize_grads(False)
        logits = whole.view(shape)
        ctx.shape, ctx.options, ctx.spent = shape, options, False
        # A loss scaler multiplies grad_loss by 65536 so that small float16 gradients survive: they
        # would be lost if they were rounded before that factor arrives.
        ctx.early = options.get("reduction") != NONE and whole.dtype != torch.float16
        if ctx.early:
            loss = _ops.forward_backward_(logits, target, weight, normalizer, **options)
            ctx.save_for_backward(whole)
        else:
            loss, state = _ops.forward(logits, target, weight, normalizer, **options)
            ctx.save_for_backward(whole, target, weight, state)
        return loss, whole

    @staticmethod
    def backward(ctx, grad_loss, grad_whole):
        if grad_whole is not None:
            raise RuntimeError(
                "cross_entropy(inplace=True) consumed its logits, and they were used again; "
                "use them before the loss, or call it with inplace=False"
            )
        if torch.is_grad_enabled():
            raise RuntimeError(
                "cross_entropy(inplace=True) has no second derivative (create_graph=True); "
                "call it with inplace=False"
            )
        whole, *rest = ctx.saved_tensors
        if ctx.spent:
            raise RuntimeError(
                "a second backward through cross_entropy(inplace=True): its gradient has been "
                "handed out with the logits' memory; call it with inplace=False"
            )
        grad = whole.detach()
        if ctx.early:
            if not (whole.is_cpu and _is_one(grad_loss)):  # where a value is at hand, look at it
                _ops.scale_(grad, grad_loss)
        else:
            target, weight, state = rest
            _ops.backward_(grad_loss, grad.view(ctx.shape), target, state, weight, **ctx.options)
        ctx.spent = True  # not before: a call that raises has not touched the logits
        return grad, None


def _apply_of(function):
    """`Function.apply` without its look at torch.func transforms, which `runs_composition` has had:
    2 of the 38 us of a small call."""
    return getattr(super(torch.autograd.Function, function), "apply", function.apply)


_record, _record_in_place = _apply_of(_CrossEntropy), _apply_of(_CrossEntropyInPlace)


def _overwritable(input: Tensor) -> Tensor:
    """The tensor that owns all of the logits' memory and nothing else, or an error."""
    whole = input if input._base is None else input._base
    advice = "; pass a contiguous tensor that some operation made, or use inplace=False"
    if whole.is_leaf:
        raise RuntimeError(f"inplace: input is a leaf that requires grad{advice}")
    if not input.is_contiguous():
        raise RuntimeError(
            f"inplace: input of shape {list(input.shape)} has strides {list(input.stride())}, "
            f"but must be contiguous{advice}"
        )
    if whole.numel() != input.numel() or not whole.is_contiguous():
        raise RuntimeError(
            f"inplace: input of shape {list(input.shape)} is a view of a part of a tensor of shape "
            f"{list(whole.shape)}; pass the whole and give the rest the target ignore_index, "
            "or use inplace=False"
        )
    return whole


def _refuse_in_place(**others: Tensor | None) -> None:
    """What wants a gradient beside the logits: plain PyTorch makes it, and keeps the logits."""
    ignored = _transforms_active() or forward_ad._current_level >= 0
    if ignored or torch.compiler.is_compiling():
        return
    for name, other in others.items():
        if other is not None and other.requires_grad:
            raise RuntimeError(
                f"inplace: {name} requires grad, and its gradient is made from the logits; "
                f"pass {name}.detach(), or use inplace=False"
            )


def runs_composition(input, others) -> bool:
    """Whether plain PyTorch computes: in transforms, elsewhere than on CPU and CUDA, and where any
    of the tensors (or None) beside the input wants a gradient."""
    if _transforms_active() or forward_ad._current_level >= 0:
        return True
    if not (input.is_cpu or input.is_cuda or input.is_meta):
        return True
    for other in others:
        if other is not None and other.requires_grad:
            return torch.is_grad_enabled()
    return False


def check_composition(shape, dtype, target, weight, options) -> None:
    """The operators' own checks, for arguments that no operator gets to see.

    They look at stand-ins without data. But class indices are looked at where they can be: on the
    CPU, and not inside a transform.
    """
    if torch.compiler.is_compiling() or 0 in shape:
        return

    def stand_in(tensor):
        return torch.zeros((), dtype=tensor.dtype, device="cpu").expand(tensor.shape)

    seen = target
    while torch._C._functorch.is_gradtrackingtensor(seen):
        seen = torch._C._functorch.get_unwrapped(seen)
    visible = seen.is_cpu and not seen.is_floating_point() and not is_batched(seen)
    with torch.no_grad():
        _ops.divisor(
            torch.zeros((), dtype=dtype, device="cpu").expand(shape),
            seen if visible else stand_in(target),
            None if weight is None else stand_in(weight),
            None,
            **options,
        )


def is_batched(tensor) -> bool:
    """Whether a transform, or is_grads_batched, has put several tensors in the place of one."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(
        tensor
    )


def composition(input, target, weight, normalizer, options) -> Tensor:
    options = dict(options)
    reduction = arguments.REDUCTION_NAMES[options.pop("reduction", MEAN)]
    return reference.cross_entropy(
        input, target, weight, reduction=reduction, normalizer=normalizer, **options
    )


def _differentiable_grad(input, target, weight, normalizer, options, grad_loss) -> Tensor:
    loss = composition(input, target, weight, normalizer, options)
    (grad,) = torch.autograd.grad(loss, input, grad_loss, create_graph=True)
    return grad
