"""No time without a right answer: the loss and the gradients of a call against float64."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from bench.cases import Option
from bench.problem import Forward, Problem
from bench.shapes import Shape
from torchce_cuda import reference

# Largest relative error that still counts as right. That of bfloat16 lets F.cross_entropy pass:
# it keeps log-probabilities in bfloat16, half a unit in the last place of a value in [8, 16) is
# 2^-5, and the gradient is its exponential. A head's gradients are sums of such gradients, no less
# exact. What was timed is stored with its error.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}

CHUNK_ELEMENTS = 1 << 22  # the reference makes a dozen float64 tensors of the size of its input


class Errors(dict[str, float]):
    """Largest errors, relative to the largest float64 value, by what they are errors of."""

    def within(self, tolerance: float) -> bool:
        return all(error <= tolerance for error in self.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {error:.1e}" for name, error in self.items())


class Expected:
    """Loss and gradients of a problem in float64, from the same rounded inputs.

    The gradient of given logits is compared at the target entries and elsewhere, where it is far
    smaller and would hide behind them.
    """

    def __init__(self, problem: Problem, option: Option):
        arguments = {
            name: value.double()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for name, value in problem.arguments(option).items()
        }
        target = arguments.pop("target")
        divisor = self.divisor(problem.shape, target, arguments.get("weight"))

        self.loss = torch.zeros((), dtype=torch.float64, device=problem.device)
        inputs, *head = problem.inputs  # logits, or hidden states and a head
        head = [each.double().requires_grad_() for each in head]
        gradient = torch.empty(inputs.shape, dtype=torch.float64, device=problem.device)
        step = max(1, CHUNK_ELEMENTS // math.prod(problem.shape.logits_size[1:]))
        self.parts = [slice(start, start + step) for start in range(0, len(target), step)]
        for part in self.parts:
            rows = inputs[part].double().requires_grad_()
            logits = F.linear(rows, *head) if head else rows
            loss = self.summed(logits, target[part], **arguments) / divisor
            loss.backward()
            self.loss += loss.detach()
            gradient[part] = rows.grad
        self.gradients = (gradient, *(each.grad for each in head))
        self.target = target

    def divisor(
        self, shape: Shape, target: torch.Tensor, weight: torch.Tensor | None
    ) -> torch.Tensor | int:
        """Of the mean."""
        indices = not target.is_floating_point()
        return weight[target].sum() if indices and weight is not None else shape.rows

    def summed(self, logits: torch.Tensor, target: torch.Tensor, **arguments) -> torch.Tensor:
        """The sum of the losses of some rows."""
        return reference.cross_entropy(logits, target, reduction="sum", **arguments)

    def errors(self, call: Forward) -> Errors:
        """Run a call once and compare what it gives."""
        call.prepare()
        for each in call.inputs:
            torch.full_like(each, math.nan)  # an entry that nobody writes is then likely NaN
        errors = Errors(loss=relative_error([(call.run().detach(), self.loss)]))
        gradients = call.gradients()
        if any(each is None for each in gradients):
            raise RuntimeError("an input got no gradient")
        if gradients:
            errors.update(self.gradient_errors(*gradients))
        return errors

    def gradient_errors(self, gradient: torch.Tensor) -> dict[str, float]:
        """The errors of what a call gave for each input."""
        (expected,) = self.gradients
        if self.target.is_floating_point():  # probabilities
            parts = ((gradient[part], expected[part]) for part in self.parts)
            return {"other": relative_error(parts)}
        index = self.target.unsqueeze(1)  # [N, 1, d1, ...]
        parts = [(gradient[part], expected[part], index[part]) for part in self.parts]
        return {
            "target": relative_error((a.gather(1, i), e.gather(1, i)) for a, e, i in parts),
            "other": relative_error((a.scatter(1, i, 0), e.scatter(1, i, 0)) for a, e, i in parts),
        }


def relative_error(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """max |actual - expected| / max |expected| of all pairs; infinite if a NaN is among them."""
    errors, values = [], []
    for actual, expected in pairs:  # one at a time: in float64 they are large
        errors.append((actual.double() - expected).abs().max())
        values.append(expected.abs().max())
    error = (torch.stack(errors).max() / torch.stack(values).max()).item()
    return math.inf if math.isnan(error) else error
