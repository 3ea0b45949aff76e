"""Cross entropy for PyTorch: softmax, log, class weight and focal modulation in one fused pass."""

from .functional import check_targets, cross_entropy
from .linear import linear_cross_entropy, next_token_target
from .modules import CrossEntropyLoss, FocalLoss, LinearCrossEntropyLoss

__version__ = "0.1.0"
__all__ = [
    "CrossEntropyLoss",
    "FocalLoss",
    "LinearCrossEntropyLoss",
    "check_targets",
    "cross_entropy",
    "linear_cross_entropy",
    "next_token_target",
]
