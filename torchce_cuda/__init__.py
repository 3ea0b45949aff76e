"""Cross entropy for PyTorch: softmax, log, class weight and focal modulation in one fused pass."""

from .functional import check_targets, cross_entropy
from .modules import CrossEntropyLoss, FocalLoss

__version__ = "0.1.0"
__all__ = ["CrossEntropyLoss", "FocalLoss", "check_targets", "cross_entropy"]
