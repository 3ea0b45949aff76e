"""Who is measured: a provider that cannot be loaded is skipped with the reason."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, MappingProxyType

import torch
import torch.nn.functional as F

from bench import peers
from bench.cases import PROBABILITIES, WEIGHT, WORKS, Option
from bench.peers import Loss
from bench.shapes import ODD_ROWS, POSITIONS, Shape

OURS = "torchce_cuda"
TORCH = "F.cross_entropy"
TORCH_FLOAT = "F.cross_entropy of .float()"
COMPILED = "torch.compile"
AUTOTUNED = "torch.compile max-autotune"
LIGER = "Liger"
LIGER_CUTE = "Liger CuTe"
LIGER_CUTILE = "Liger cuTile"
QUACK = "QuACK"
FLASH_ATTN = "flash-attn"
FLA = "fla"
FLAG_GEMS = "FlagGems"
APEX = "apex"
TRANSFORMER_ENGINE = "Transformer Engine"
MMCV = "mmcv"


@dataclass(frozen=True)
class Provider:
    """`load(work)` returns the loss to call, or raises ImportError with the reason to skip it."""

    name: str
    load: Callable[[str], Loss]
    takes: frozenset[str] = frozenset()  # of what options ask for, what it understands
    works: frozenset[str] = frozenset(WORKS)
    needs: frozenset[str] = frozenset()  # without these asked for, it is not what one would call
    lacks: frozenset[str] = frozenset()  # dtypes, and traits of shapes, that it cannot be given
    # Device -> why it is measured there only where it is named.
    left_out: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def supports(self, option: Option, work: str) -> bool:
        return work in self.works and self.needs <= option.asks_for <= self.takes

    def obstacles(self, shape: Shape, dtype: str) -> set[str]:
        """What of a problem it cannot be given."""
        return self.lacks & {dtype, *shape.traits}


def load_ours(work: str) -> Loss:
    import torchce_cuda

    return partial(torchce_cuda.cross_entropy, inplace=work == "one_pass")


def load_torch(work: str) -> Loss:
    return F.cross_entropy


def load_torch_float(work: str) -> Loss:
    """What most models do: losses are taken in float32."""
    return lambda logits, *args, **arguments: F.cross_entropy(logits.float(), *args, **arguments)


def _cross_entropy(logits, target, weight=None, label_smoothing=0.0):
    return F.cross_entropy(logits, target, weight, label_smoothing=label_smoothing)


def compiled(function: FunctionType, **how: bool | str) -> Loss:
    """Under torch.compile, apart from whatever else was compiled of this function.

    Dynamo keeps its compiled entries per code object and searches them at every call. With a code
    object of its own each contender has one entry, as in a program with one way to call the loss.
    """
    code = function.__code__.replace()
    names = (function.__globals__, "loss", function.__defaults__, function.__closure__)
    loss = FunctionType(code, *names)
    return torch.compile(loss, dynamic=False, **how)


def autotuned(function: FunctionType) -> Loss:
    """Without CUDA graphs of its own: they cannot be captured into the graph that is timed."""
    return compiled(function, mode="max-autotune-no-cudagraphs")


def load_compiled(work: str) -> Loss:
    return compiled(_cross_entropy)


def load_autotuned(work: str) -> Loss:
    return autotuned(_cross_entropy)


def table(*providers: Provider) -> dict[str, Provider]:
    return {provider.name: provider for provider in providers}


# Liger writes the gradient over the logits in the forward pass, where one is wanted.
IN_PLACE = frozenset({"forward", "one_pass"})
ROWS = frozenset({POSITIONS})  # lacked by whoever takes logits [N, C] alone
OF_TORCH = frozenset({WEIGHT, PROBABILITIES, "label_smoothing"})
OF_LIGER = frozenset({WEIGHT, "label_smoothing", "z_loss", "logit_softcap"})
SMOOTHING = frozenset({"label_smoothing"})

PROVIDERS = table(
    Provider(OURS, load_ours, OF_TORCH | {"gamma", "z_loss", "logit_softcap"}),
    Provider(TORCH, load_torch, OF_TORCH),
    Provider(
        TORCH_FLOAT,
        load_torch_float,
        OF_TORCH,
        lacks=frozenset({"float32", "float64"}),  # the same call
    ),
    Provider(COMPILED, load_compiled, OF_TORCH),
    Provider(
        AUTOTUNED,
        load_autotuned,
        OF_TORCH,
        left_out={"cpu": "its code there is that of torch.compile"},
    ),
    Provider(LIGER, peers.load_liger, OF_LIGER, IN_PLACE, lacks=ROWS),
    Provider(LIGER_CUTE, peers.load_liger_cute, OF_LIGER, IN_PLACE, lacks=ROWS | {ODD_ROWS}),
    Provider(LIGER_CUTILE, peers.load_liger_cutile, OF_LIGER, IN_PLACE, lacks=ROWS),
    Provider(QUACK, peers.load_quack, frozenset({WEIGHT}), lacks=ROWS),
    Provider(FLASH_ATTN, peers.load_flash_attn, SMOOTHING | {"z_loss"}, lacks=ROWS),
    Provider(FLA, peers.load_fla, SMOOTHING | {"z_loss", "logit_softcap"}, lacks=ROWS),
    Provider(FLAG_GEMS, peers.load_flag_gems, OF_TORCH),
    Provider(APEX, peers.load_apex, SMOOTHING, lacks=ROWS),
    Provider(
        TRANSFORMER_ENGINE,
        peers.load_transformer_engine,
        SMOOTHING,
        lacks=ROWS | {"float16"},
    ),
    Provider(
        MMCV,
        peers.load_mmcv,
        frozenset({WEIGHT, "gamma"}),
        needs=frozenset({"gamma"}),
        lacks=ROWS | {"bfloat16"},
    ),
)
