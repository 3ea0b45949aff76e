"""Who is measured at a head: `loss(hidden, head, target)`."""

from functools import partial

import torch
import torch.nn.functional as F

from bench.providers import (
    COMPILED,
    LIGER,
    OURS,
    QUACK,
    Loss,
    Provider,
    compiled,
    require_cuda,
)

TORCH = "F.linear + F.cross_entropy"
TORCH_LINEAR = "F.linear_cross_entropy"
CUT = "cut-cross-entropy"


def load_ours(work: str) -> Loss:
    import torchce_cuda

    return torchce_cuda.linear_cross_entropy


def _separate(hidden, head, target):
    return F.cross_entropy(F.linear(hidden, head), target)


def load_torch(work: str) -> Loss:
    return _separate


def load_compiled(work: str) -> Loss:
    return compiled(_separate)


def load_torch_linear(work: str) -> Loss:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise ImportError("needs torch 2.13, which takes it chunk by chunk")
    return partial(F.linear_cross_entropy, options=torch.nn.LinearCrossEntropyOptions())


def load_liger(work: str) -> Loss:
    require_cuda()
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy


def load_cut(work: str) -> Loss:
    require_cuda()
    from cut_cross_entropy import linear_cross_entropy

    return lambda hidden, head, target: linear_cross_entropy(hidden, head, targets=target)


def load_quack(work: str) -> Loss:
    require_cuda()
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(OURS, load_ours),
        Provider(TORCH, load_torch),
        Provider(COMPILED, load_compiled),
        Provider(TORCH_LINEAR, load_torch_linear),
        Provider(LIGER, load_liger),
        Provider(CUT, load_cut),
        Provider(QUACK, load_quack),
    )
}
