"""The kernels of others for given logits, each called by its own names for what we call ours.

A function here takes the kind of work and returns the loss to call, or raises ImportError with the
reason to skip it. All of them run on a GPU alone. What a peer cannot do is said in its row of
`providers.PROVIDERS`. Not here: unsloth, which changes PyTorch for everybody else when imported.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module

import torch

# loss(*inputs, target, weight=None, **arguments) -> scalar tensor; the inputs are the logits, or
# hidden states and the weight of a head
Loss = Callable[..., torch.Tensor]

LIGER_KERNELS = "liger_kernel.ops"  # Triton; other languages in packages of their own below


def require_cuda() -> None:
    if not torch.cuda.is_available():
        raise ImportError("needs a CUDA device")


def load_liger(work: str, kernels: str = LIGER_KERNELS) -> Loss:
    """The kernels by their place: what a process takes by LIGER_KERNEL_IMPL can be only one."""
    require_cuda()
    apply = import_module(f"{kernels}.cross_entropy").LigerCrossEntropyFunction.apply

    def loss(logits, target, weight=None, label_smoothing=0.0, z_loss=0.0, logit_softcap=None):
        ignore_index, reduction = -100, "mean"
        return apply(
            logits, target, weight, ignore_index, z_loss, label_smoothing, reduction, logit_softcap
        )[0]

    return loss


load_liger_cute = partial(load_liger, kernels=f"{LIGER_KERNELS}.cutedsl.ops")
load_liger_cutile = partial(load_liger, kernels=f"{LIGER_KERNELS}.cutile.ops")


def load_quack(work: str) -> Loss:
    require_cuda()
    from quack.cross_entropy import cross_entropy

    return partial(cross_entropy, inplace_backward=work == "one_pass")


def load_flash_attn(work: str) -> Loss:
    require_cuda()
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    def loss(logits, target, label_smoothing=0.0, z_loss=0.0):
        losses, _ = cross_entropy_loss(
            logits,
            target,
            label_smoothing=label_smoothing,
            lse_square_scale=z_loss,
            inplace_backward=work == "one_pass",
        )
        return losses.mean()

    return loss


def load_fla(work: str) -> Loss:
    require_cuda()
    from fla.modules.fused_cross_entropy import cross_entropy_loss

    def loss(logits, target, label_smoothing=0.0, z_loss=0.0, logit_softcap=None):
        losses, _ = cross_entropy_loss(
            logits,
            target,
            label_smoothing=label_smoothing,
            lse_square_scale=z_loss,
            logit_softcapping=logit_softcap,
            inplace_backward=work == "one_pass",
        )
        return losses.mean()

    return loss


def load_flag_gems(work: str) -> Loss:
    require_cuda()
    from flag_gems.fused.cross_entropy_loss import cross_entropy_loss

    return cross_entropy_loss


def load_apex(work: str) -> Loss:
    require_cuda()
    from apex.contrib.xentropy import SoftmaxCrossEntropyLoss

    def loss(logits, target, label_smoothing=0.0):
        ignore_index, float_losses = -100, True
        losses = SoftmaxCrossEntropyLoss.apply(
            logits, target, label_smoothing, ignore_index, float_losses
        )
        return losses.mean()

    return loss


def load_transformer_engine(work: str) -> Loss:
    require_cuda()
    from transformer_engine.pytorch.cross_entropy import parallel_cross_entropy

    def loss(logits, target, label_smoothing=0.0):
        mean = True
        return parallel_cross_entropy(logits[None], target[None], label_smoothing, mean)

    return loss


def load_mmcv(work: str) -> Loss:
    require_cuda()
    from mmcv.ops import softmax_focal_loss

    def loss(logits, target, weight=None, gamma=0.0):
        # Its alpha is one factor for all classes; its own mean divides by the rows.
        alpha = 1.0
        total = softmax_focal_loss(logits, target, gamma, alpha, weight, "sum")
        return total / (len(target) if weight is None else weight[target].sum())

    return loss
