"""The 100 % of a measurement, timed in the same rounds: the bare work, into memory that exists."""

import torch

from bench.cases import OPTIONS, PLAIN, STEP
from bench.problem import Problem

COPY, PRODUCTS, BODY = "copy", "three products", "step without head and loss"


class _Baseline:
    """A contender that needs nothing and leaves nothing: it writes into memory that exists."""

    prepares = False

    def prepare(self) -> None:
        pass

    def release(self) -> None:
        pass


class Copy(_Baseline):
    """Copies the logits."""

    def __init__(self, problem: Problem):
        self.source = problem.logits
        self.destination = torch.empty_like(self.source)

    def run(self) -> torch.Tensor:
        return self.destination.copy_(self.source)


class Products(_Baseline):
    """The bare products of hidden states and head: their logits, and back to both gradients.

    The logits stand for their own gradient, which would only take memory.
    """

    def __init__(self, problem: Problem):
        self.hidden, self.head = problem.inputs
        self.logits = self.hidden.new_empty(problem.shape.logits_size)
        self.grad_hidden, self.grad_head = map(torch.empty_like, problem.inputs)

    def run(self) -> torch.Tensor:
        torch.mm(self.hidden, self.head.t(), out=self.logits)
        torch.mm(self.logits, self.head, out=self.grad_hidden)
        return torch.mm(self.logits.t(), self.hidden, out=self.grad_head)


class Body(_Baseline):
    """A training step whose loss needs no head and costs nothing."""

    def __init__(self, problem: Problem):
        self.step = problem.call(STEP, lambda hidden, head, target: hidden.sum(), OPTIONS[PLAIN])

    def run(self) -> torch.Tensor:
        return self.step.run()


BASELINES = {COPY: Copy, PRODUCTS: Products, BODY: Body}
