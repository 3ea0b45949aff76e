"""Who is measured at a head: `loss(hidden, head, target)`."""

from functools import partial

import torch
import torch.nn.functional as F

from bench.linear import peers
from bench.peers import Loss
from bench.providers import (
    AUTOTUNED,
    COMPILED,
    FLA,
    LIGER,
    LIGER_CUTE,
    LIGER_CUTILE,
    OURS,
    QUACK,
    Provider,
    autotuned,
    compiled,
    table,
)
from bench.shapes import ODD_ROWS

TORCH = "F.linear + F.cross_entropy"
TORCH_FLOAT = "F.linear + F.cross_entropy of .float()"
TORCH_LINEAR = "F.linear_cross_entropy"
LIGER_FLOAT = "Liger, head summed in float32"
CUT = "cut-cross-entropy"
CUT_EXACT = "cut-cross-entropy exact"
CUT_KAHAN = "cut-cross-entropy Kahan"
CUT_COMPILED = "cut-cross-entropy torch_compile"

FULL = frozenset({"float32", "float64"})


def load_ours(work: str) -> Loss:
    import torchce_cuda

    return torchce_cuda.linear_cross_entropy


def _separate(hidden, head, target):
    return F.cross_entropy(F.linear(hidden, head), target)


def load_torch(work: str) -> Loss:
    return _separate


def load_torch_float(work: str) -> Loss:
    """What most models do: losses are taken in float32."""
    return lambda hidden, head, target: F.cross_entropy(F.linear(hidden, head).float(), target)


def load_compiled(work: str) -> Loss:
    return compiled(_separate)


def load_autotuned(work: str) -> Loss:
    return autotuned(_separate)


def load_torch_linear(work: str, **options) -> Loss:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise ImportError("needs torch 2.13, which takes it chunk by chunk")
    return partial(F.linear_cross_entropy, options=torch.nn.LinearCrossEntropyOptions(**options))


def _torch_linear_of(policy: str, **left_out: str) -> Provider:
    """By default sums are float32, here they have the dtype of the inputs: not for float32, where
    all do as the default does, up to some memory."""
    load = partial(load_torch_linear, acc_policy=policy)
    return Provider(f"{TORCH_LINEAR} {policy}", load, lacks=FULL, left_out=left_out)


PROVIDERS = table(
    Provider(OURS, load_ours),
    Provider(TORCH, load_torch),
    Provider(
        TORCH_FLOAT,
        load_torch_float,
        lacks=FULL,  # the same call
    ),
    Provider(COMPILED, load_compiled),
    Provider(
        AUTOTUNED,
        load_autotuned,
        left_out={"cpu": "its code there is that of torch.compile"},
    ),
    Provider(TORCH_LINEAR, load_torch_linear),
    _torch_linear_of("accurate"),
    _torch_linear_of("balanced", cpu="it takes longer than accurate there, for little"),
    _torch_linear_of("compact", cpu="it takes longer than accurate there, for little"),
    Provider(LIGER, peers.load_liger),
    Provider(LIGER_FLOAT, peers.load_liger_float, lacks=FULL),  # the same call
    Provider(LIGER_CUTE, peers.load_liger_cute, lacks=frozenset({"float32", ODD_ROWS})),
    Provider(LIGER_CUTILE, peers.load_liger_cutile, lacks=frozenset({"float32", "float16"})),
    Provider(CUT, peers.load_cut),
    Provider(CUT_EXACT, peers.load_cut_exact),
    Provider(CUT_KAHAN, peers.load_cut_kahan),
    Provider(CUT_COMPILED, peers.load_cut_compiled),
    Provider(QUACK, peers.load_quack),
    Provider(FLA, peers.load_fla),
)
