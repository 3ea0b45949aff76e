"""Who is measured: whoever takes hidden states and a head, and ours of logits."""

import dataclasses
from functools import partial

import torch.nn.functional as F

from bench.cases import STEP
from bench.linear import providers as linear
from bench.providers import COMPILED, LIGER, OURS, QUACK, Loss, Provider

OF_LOGITS = "F.linear + torchce_cuda in place"
TAKE_PART = (OURS, linear.TORCH, COMPILED, linear.TORCH_LINEAR, LIGER, linear.CUT, QUACK)


def _of_logits(cross_entropy, hidden, head, target):
    return cross_entropy(F.linear(hidden, head), target, inplace=True)


def load_of_logits(work: str) -> Loss:
    import torchce_cuda

    return partial(_of_logits, torchce_cuda.cross_entropy)


PROVIDERS = {
    provider.name: dataclasses.replace(provider, works=frozenset({STEP}))
    for provider in (
        *(linear.PROVIDERS[name] for name in TAKE_PART),
        Provider(OF_LOGITS, load_of_logits),
    )
}
