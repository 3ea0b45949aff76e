"""The kernels of others for hidden states and a head: `loss(hidden, head, target)`, on a GPU."""

from functools import partial
from importlib import import_module

import torch

from bench.peers import LIGER_KERNELS, Loss, require_cuda


def load_liger(work: str) -> Loss:
    require_cuda()
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy


def load_liger_float(work: str) -> Loss:
    """The head's gradient is a sum over chunks, by default in the dtype of the head."""
    return partial(load_liger(work), accum_dtype=torch.float32)


def load_liger_cute(work: str) -> Loss:
    """Its kernels for Hopper are a function of their own."""
    require_cuda()
    kernels = f"{LIGER_KERNELS}.cutedsl.ops.fused_linear_cross_entropy"
    if torch.cuda.get_device_capability() == (9, 0):
        return import_module(f"{kernels}_sm90").liger_fused_linear_cross_entropy_sm90
    return _first_of(import_module(kernels).LigerFusedLinearCrossEntropyFunction)


def load_liger_cutile(work: str) -> Loss:
    require_cuda()
    kernels = import_module(f"{LIGER_KERNELS}.cutile.ops.fused_linear_cross_entropy")
    return _first_of(kernels.LigerFusedLinearCrossEntropyFunction)


def _first_of(function: type[torch.autograd.Function]) -> Loss:
    """The loss, of which it returns statistics too."""
    return lambda hidden, head, target: function.apply(hidden, head, target)[0]


def load_cut(work: str, **arguments) -> Loss:
    require_cuda()
    from cut_cross_entropy import linear_cross_entropy

    return lambda hidden, head, target: linear_cross_entropy(
        hidden, head, targets=target, **arguments
    )


def load_cut_exact(work: str) -> Loss:
    """No gradient is left out for being small."""
    return load_cut(work, filter_eps=None)


def load_cut_kahan(work: str) -> Loss:
    """The head's gradient is summed with compensation, all of it."""
    import cut_cross_entropy.cce_utils  # noqa: F401, where versions have presets

    return load_cut(work, impl="cce_kahan_full_c")


def load_cut_compiled(work: str) -> Loss:
    """Its plain PyTorch, compiled: what it uses where its kernels cannot be."""
    from cut_cross_entropy import linear_cross_entropy

    return lambda hidden, head, target: linear_cross_entropy(
        hidden, head, targets=target, impl="torch_compile"
    )


def load_quack(work: str) -> Loss:
    require_cuda()
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy


def load_fla(work: str) -> Loss:
    require_cuda()
    from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss

    return lambda hidden, head, target: fused_linear_cross_entropy_loss(hidden, target, head)
