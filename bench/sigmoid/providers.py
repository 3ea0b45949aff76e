"""Who is measured at labels that do not exclude each other: `loss(logits, target)`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from bench.cases import WEIGHT
from bench.peers import Loss, require_cuda
from bench.providers import APEX, COMPILED, MMCV, OURS, Provider, compiled, table
from bench.sigmoid.cases import SEVERAL

TORCH = "F.binary_cross_entropy_with_logits"
TORCHVISION = "torchvision"
COMPILED_TORCHVISION = "torch.compile of torchvision"

FOCAL = frozenset({"gamma", "alpha"})


def load_ours(work: str) -> Loss:
    import torchce_cuda

    def loss(logits, target, weight=None, gamma=0.0, alpha=None):
        return torchce_cuda.sigmoid_focal_loss(logits, target, weight, gamma=gamma, alpha=alpha)

    return loss


def load_torch(work: str) -> Loss:
    return F.binary_cross_entropy_with_logits


def _binary_cross_entropy(logits, target, weight=None):
    return F.binary_cross_entropy_with_logits(logits, target, weight)


def load_compiled(work: str) -> Loss:
    return compiled(_binary_cross_entropy)


def load_torchvision(work: str) -> Loss:
    """Its compiled operators, of which this is none, do not load beside a CPU build of torch, and
    it cannot be imported where there are none of the names that it presumes."""
    try:
        from torchvision.ops import sigmoid_focal_loss
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for presumed in ("nms", "qnms"):
            torch.library.define(f"torchvision::{presumed}", "() -> ()")
        from torchvision.ops import sigmoid_focal_loss

    def loss(logits, target, gamma, alpha):
        return sigmoid_focal_loss(logits, target, alpha, gamma, "mean")

    return loss


def load_compiled_torchvision(work: str) -> Loss:
    return compiled(load_torchvision(work))


def load_mmcv(work: str) -> Loss:
    require_cuda()
    from mmcv.ops import sigmoid_focal_loss

    def loss(logits, index, gamma, alpha):
        # Its own mean divides by the rows.
        return sigmoid_focal_loss(logits, index, gamma, alpha, None, "sum") / logits.numel()

    return of_indices(loss)


def load_apex(work: str) -> Loss:
    require_cuda()
    from apex.contrib.focal_loss.focal_loss import focal_loss

    def loss(logits, index, gamma, alpha):
        # It divides by a number of boxes: for the mean, by that of the labels.
        divisor = torch.full((), logits.numel(), dtype=torch.float32, device=logits.device)
        return focal_loss(logits, index, divisor, logits.shape[1], alpha, gamma)

    return of_indices(loss)


def of_indices(loss: Callable[..., torch.Tensor]) -> Loss:
    """Takes labels, where the loss wants the index of the only class that is yes, or the number of
    classes. Found once for each tensor: by the call that is checked, before any that is timed."""
    known = WeakTensorKeyDictionary()

    def of_labels(logits, target, **arguments):
        if target not in known:
            known[target] = torch.where(target.any(1), target.argmax(1), target.shape[1])
        return loss(logits, known[target], **arguments)

    return of_labels


OF_INDICES = frozenset({SEVERAL, "bfloat16"})

PROVIDERS = table(
    Provider(OURS, load_ours, FOCAL | {WEIGHT}),
    Provider(TORCH, load_torch, frozenset({WEIGHT})),
    Provider(COMPILED, load_compiled, frozenset({WEIGHT})),
    Provider(TORCHVISION, load_torchvision, FOCAL, needs=FOCAL),
    Provider(COMPILED_TORCHVISION, load_compiled_torchvision, FOCAL, needs=FOCAL),
    Provider(MMCV, load_mmcv, FOCAL, needs=FOCAL, lacks=OF_INDICES),
    Provider(APEX, load_apex, FOCAL, needs=FOCAL, lacks=OF_INDICES),
)
