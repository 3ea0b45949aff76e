"""Cross entropy for PyTorch: softmax or sigmoid, log, weight and focal modulation in one pass."""

from .functional import check_targets, cross_entropy
from .linear import linear_cross_entropy, next_token_target
from .modules import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    FocalLoss,
    LinearCrossEntropyLoss,
    SigmoidFocalLoss,
)
from .sigmoid import binary_cross_entropy_with_logits, sigmoid_focal_loss
from .weights import class_weights

__version__ = "0.1.0"
__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "LinearCrossEntropyLoss",
    "SigmoidFocalLoss",
    "binary_cross_entropy_with_logits",
    "check_targets",
    "class_weights",
    "cross_entropy",
    "linear_cross_entropy",
    "next_token_target",
    "sigmoid_focal_loss",
]
