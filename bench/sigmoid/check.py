"""A sigmoid loss and its gradient against float64."""

import torch

from bench.check import Expected, relative_error
from bench.shapes import Shape
from torchce_cuda import reference


class SigmoidExpected(Expected):
    """The gradient is compared at the labels that are yes and at the others apart: either may be
    far smaller."""

    def divisor(self, shape: Shape, target: torch.Tensor, weight: torch.Tensor | None) -> int:
        return target.numel()

    def summed(
        self, logits: torch.Tensor, target: torch.Tensor, gamma: float = 0.0, **arguments
    ) -> torch.Tensor:
        return reference.sigmoid_focal_loss(
            logits, target, gamma=gamma, reduction="sum", **arguments
        )

    def gradient_errors(self, gradient: torch.Tensor) -> dict[str, float]:
        (expected,) = self.gradients
        parts = [(gradient[part], expected[part], self.target[part]) for part in self.parts]
        return {
            "target": relative_error((a * yes, e * yes) for a, e, yes in parts),
            "other": relative_error((a * (1 - yes), e * (1 - yes)) for a, e, yes in parts),
        }
