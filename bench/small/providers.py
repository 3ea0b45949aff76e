"""Who is measured: those of given logits. To compile is a mode here, not a provider."""

import dataclasses
from functools import partial

import torch.nn.functional as F

from bench import providers
from bench.cases import MODES
from bench.providers import COMPILED, OURS, TORCH, Loss, Provider, compiled


def _ours(logits, target, weight=None):
    import torchce_cuda

    return torchce_cuda.cross_entropy(logits, target, weight)


def _torch(logits, target, weight=None):
    return F.cross_entropy(logits, target, weight)


COMPILABLE = {OURS: partial(compiled, _ours, fullgraph=True), TORCH: partial(compiled, _torch)}


def in_modes(provider: Provider) -> Provider:
    """The same provider, called in each mode that it has."""

    def load(mode: str) -> Loss:
        if mode == "compiled":
            return COMPILABLE[provider.name]()
        return provider.load("forward_backward")

    modes = [mode for mode in MODES if mode != "compiled" or provider.name in COMPILABLE]
    return dataclasses.replace(provider, load=load, works=frozenset(modes))


PROVIDERS = {
    name: in_modes(provider)
    for name, provider in providers.PROVIDERS.items()
    if not name.startswith(COMPILED) and "forward_backward" in provider.works and not provider.needs
}
