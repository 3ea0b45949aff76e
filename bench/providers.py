"""Who is measured: a provider that cannot be loaded is skipped with the reason."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FunctionType

import torch
import torch.nn.functional as F

from bench.cases import Option

# loss(logits, target, weight=None, **arguments) -> scalar tensor
Loss = Callable[..., torch.Tensor]

OURS = "torchce_cuda"
TORCH = "F.cross_entropy"
COMPILED = "torch.compile"


@dataclass(frozen=True)
class Provider:
    """`load(work)` returns the loss to call, or raises ImportError with the reason to skip it."""

    name: str
    load: Callable[[str], Loss]
    takes: frozenset[str]  # the option arguments that it understands

    def supports(self, option: Option) -> bool:
        return self.takes.issuperset(option.arguments)


def load_ours(work: str) -> Loss:
    import torchce_cuda

    return partial(torchce_cuda.cross_entropy, inplace=work == "one_pass")


def load_torch(work: str) -> Loss:
    return F.cross_entropy


def _cross_entropy(logits, target, weight=None, label_smoothing=0.0):
    return F.cross_entropy(logits, target, weight, label_smoothing=label_smoothing)


def load_compiled(work: str) -> Loss:
    # Dynamo keeps its compiled entries per code object and searches them at every call. With a code
    # object of its own each contender has one entry, as in a program with one way to call the loss.
    code = _cross_entropy.__code__.replace()
    loss = FunctionType(code, globals(), "loss", _cross_entropy.__defaults__)
    return torch.compile(loss, dynamic=False)


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(OURS, load_ours, frozenset({"gamma", "label_smoothing", "logit_softcap"})),
        Provider(TORCH, load_torch, frozenset({"label_smoothing"})),
        Provider(COMPILED, load_compiled, frozenset({"label_smoothing"})),
    )
}
