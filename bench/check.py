"""No time without a right answer: the loss and the gradient of a call against float64."""

import math
from dataclasses import dataclass

import torch

from bench.cases import Option
from bench.problem import Forward, Problem
from torchce_cuda import reference

# Largest relative error that still counts as right. That of bfloat16 lets F.cross_entropy pass:
# it keeps log-probabilities in bfloat16, half a unit in the last place of a value in [8, 16) is
# 2^-5, and the gradient is its exponential. What was timed is stored with its error.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}

CHUNK_ELEMENTS = 1 << 22  # the reference makes a dozen float64 tensors of the size of its input


@dataclass(frozen=True)
class Errors:
    """Largest errors, relative to the largest float64 value, of the loss, of the gradient at the
    target entries, and of the gradient elsewhere, which is far smaller and would hide behind them.
    None: nothing to compare."""

    loss: float
    target: float | None = None
    other: float | None = None

    def within(self, tolerance: float) -> bool:
        errors = (self.loss, self.target, self.other)
        return all(error <= tolerance for error in errors if error is not None)

    def __str__(self) -> str:
        parts = {"loss": self.loss, "target entries": self.target, "other entries": self.other}
        return ", ".join(
            f"{name} {value:.1e}" for name, value in parts.items() if value is not None
        )


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """max |actual - expected| / max |expected|; infinite if a NaN is among them."""
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    return math.inf if math.isnan(error) else error


class Expected:
    """Loss and gradient in float64, from the same rounded inputs."""

    def __init__(self, problem: Problem, option: Option):
        arguments = {
            name: value.double()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for name, value in problem.arguments(option).items()
        }
        target = arguments.pop("target")
        divisor = problem.shape.rows
        if option.weighted and not option.probabilities:
            divisor = arguments["weight"][target].sum()

        self.loss = torch.zeros((), dtype=torch.float64)
        self.gradient = torch.empty(problem.shape.size, dtype=torch.float64)
        step = max(1, CHUNK_ELEMENTS // problem.logits[0].numel())
        for start in range(0, len(target), step):
            part = slice(start, start + step)
            logits = problem.logits[part].double().requires_grad_()
            loss = (
                reference.cross_entropy(logits, target[part], reduction="sum", **arguments)
                / divisor
            )
            loss.backward()
            self.loss += loss.detach()
            self.gradient[part] = logits.grad

        self.is_target = None  # [N, C, d1, ...]
        if not option.probabilities:
            self.is_target = torch.zeros(problem.shape.size, dtype=torch.bool)
            self.is_target.scatter_(1, target.unsqueeze(1), True)

    def errors(self, call: Forward) -> Errors:
        """Run a call once and compare what it gives."""
        call.prepare()
        loss = relative_error(call.run().detach(), self.loss)
        gradient = call.gradient()
        if gradient is None:
            return Errors(loss)
        if self.is_target is None:
            return Errors(loss, other=relative_error(gradient, self.gradient))
        return Errors(
            loss,
            relative_error(gradient[self.is_target], self.gradient[self.is_target]),
            relative_error(gradient[~self.is_target], self.gradient[~self.is_target]),
        )
