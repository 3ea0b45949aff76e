"""Who is measured: a provider that cannot be loaded is skipped with the reason."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FunctionType

import torch
import torch.nn.functional as F

from bench.cases import WORKS, Option

# loss(*inputs, target, weight=None, **arguments) -> scalar tensor; the inputs are the logits, or
# hidden states and the weight of a head
Loss = Callable[..., torch.Tensor]

OURS = "torchce_cuda"
TORCH = "F.cross_entropy"
COMPILED = "torch.compile"
LIGER = "Liger"
QUACK = "QuACK"


@dataclass(frozen=True)
class Provider:
    """`load(work)` returns the loss to call, or raises ImportError with the reason to skip it."""

    name: str
    load: Callable[[str], Loss]
    takes: frozenset[str] = frozenset()  # the option arguments that it understands
    works: frozenset[str] = frozenset(WORKS)

    def supports(self, option: Option, work: str) -> bool:
        return work in self.works and self.takes.issuperset(option.arguments)


def load_ours(work: str) -> Loss:
    import torchce_cuda

    return partial(torchce_cuda.cross_entropy, inplace=work == "one_pass")


def load_torch(work: str) -> Loss:
    return F.cross_entropy


def _cross_entropy(logits, target, weight=None, label_smoothing=0.0):
    return F.cross_entropy(logits, target, weight, label_smoothing=label_smoothing)


def compiled(function: FunctionType, fullgraph: bool = False) -> Loss:
    """Under torch.compile, apart from whatever else was compiled of this function.

    Dynamo keeps its compiled entries per code object and searches them at every call. With a code
    object of its own each contender has one entry, as in a program with one way to call the loss.
    """
    code = function.__code__.replace()
    loss = FunctionType(code, function.__globals__, "loss", function.__defaults__)
    return torch.compile(loss, dynamic=False, fullgraph=fullgraph)


def load_compiled(work: str) -> Loss:
    return compiled(_cross_entropy)


def load_liger(work: str) -> Loss:
    require_cuda()
    from liger_kernel.transformers.functional import liger_cross_entropy

    def loss(logits, target, weight=None, label_smoothing=0.0, z_loss=0.0, logit_softcap=None):
        return liger_cross_entropy(
            logits,
            target,
            weight,
            label_smoothing=label_smoothing,
            lse_square_scale=z_loss,
            softcap=logit_softcap,
        )

    return loss


def load_quack(work: str) -> Loss:
    require_cuda()
    from quack.cross_entropy import cross_entropy

    return partial(cross_entropy, inplace_backward=work == "one_pass")


def require_cuda() -> None:
    if not torch.cuda.is_available():
        raise ImportError("needs a CUDA device")


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(
            OURS, load_ours, frozenset({"gamma", "label_smoothing", "z_loss", "logit_softcap"})
        ),
        Provider(TORCH, load_torch, frozenset({"label_smoothing"})),
        Provider(COMPILED, load_compiled, frozenset({"label_smoothing"})),
        Provider(
            LIGER,
            load_liger,
            frozenset({"label_smoothing", "z_loss", "logit_softcap"}),
            frozenset({"one_pass"}),  # it always writes the gradient over the logits
        ),
        Provider(QUACK, load_quack),
    )
}
