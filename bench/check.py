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

        self.loss = torch.zeros((), dtype=torch.float64, device=problem.device)
        self.gradient = torch.empty(problem.shape.size, dtype=torch.float64, device=problem.device)
        step = max(1, CHUNK_ELEMENTS // problem.logits[0].numel())
        self.parts = [slice(start, start + step) for start in range(0, len(target), step)]
        for part in self.parts:
            logits = problem.logits[part].double().requires_grad_()
            loss = (
                reference.cross_entropy(logits, target[part], reduction="sum", **arguments)
                / divisor
            )
            loss.backward()
            self.loss += loss.detach()
            self.gradient[part] = logits.grad
        self.index = None if option.probabilities else target.unsqueeze(1)  # [N, 1, d1, ...]

    def errors(self, call: Forward) -> Errors:
        """Run a call once and compare what it gives."""
        call.prepare()
        torch.full_like(call.logits, math.nan)  # an entry that nobody writes is then likely NaN
        loss = _Largest()
        loss.add(call.run().detach(), self.loss)
        gradient = call.gradient()
        if gradient is None:
            return Errors(loss.relative_error())
        target, other = _Largest(), _Largest()
        for part in self.parts:
            actual, expected = gradient[part].double(), self.gradient[part]
            if self.index is not None:
                index = self.index[part]
                target.add(actual.gather(1, index), expected.gather(1, index))
                actual, expected = actual.scatter(1, index, 0), expected.scatter(1, index, 0)
            other.add(actual, expected)
        return Errors(
            loss.relative_error(),
            None if self.index is None else target.relative_error(),
            other.relative_error(),
        )


class _Largest:
    """The largest error and the largest value of what was added, part by part."""

    def __init__(self):
        self._errors, self._values = [], []

    def add(self, actual: torch.Tensor, expected: torch.Tensor) -> None:
        self._errors.append((actual - expected).abs().max())
        self._values.append(expected.abs().max())

    def relative_error(self) -> float:
        """max |actual - expected| / max |expected|; infinite if a NaN is among them."""
        error = (torch.stack(self._errors).max() / torch.stack(self._values).max()).item()
        return math.inf if math.isnan(error) else error
