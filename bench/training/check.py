"""The loss of a training step, and of the next, against a model in float64."""

import copy

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from bench.cases import Option
from bench.check import CHUNK_ELEMENTS, Errors, Expected, relative_error
from bench.training.problem import Step, TrainingProblem


def chunked_loss(hidden: torch.Tensor, head: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """PyTorch's loss, a chunk of logits at a time: in float64 all of them would not fit."""

    def part(rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(rows, head), target, reduction="sum")

    step = max(1, CHUNK_ELEMENTS // len(head))
    chunks = zip(hidden.split(step), target.split(step), strict=True)
    return sum(checkpoint(part, *chunk, use_reentrant=False) for chunk in chunks) / len(target)


class TrainingExpected(Expected):
    """The loss of the first step, and the loss after it, which a wrong gradient moves."""

    def __init__(self, problem: TrainingProblem, option: Option):
        exact = copy.copy(problem)
        exact.model = copy.deepcopy(problem.model).double()
        self.losses = losses(Step(chunked_loss, exact))

    def errors(self, call: Step) -> Errors:
        pairs = zip(("loss", "next_loss"), losses(call), self.losses, strict=True)
        return Errors({name: relative_error([(is_, should)]) for name, is_, should in pairs})


def losses(step: Step) -> list[torch.Tensor]:
    return [step.run(), step.run()]
