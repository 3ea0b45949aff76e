"""The tensors of one shape and dtype, and the calls that are timed, checked and weighed on them."""

import copy

import torch

from bench.cases import Option
from bench.providers import Loss
from bench.shapes import Shape

SEED = 0
SPREAD = 3.0  # standard deviation of the logits: rows far from uniform, as in training


class Problem:
    """Inputs that every provider and option reads: the same memory for all."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str = "cpu"):
        generator = torch.Generator(device).manual_seed(SEED)
        here = {"generator": generator, "device": device}
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.logits = self._normal(generator)  # [N, C, d1, ...]
        self.target = torch.randint(shape.cols, shape.target_size, **here)
        self.weight = (0.5 + torch.rand(shape.cols, **here)).to(dtype)  # [C]
        self._generator = generator
        self._probabilities = None

    @property
    def probabilities(self) -> torch.Tensor:
        """Targets, [N, C, d1, ...]; as large as the logits, so made when first asked for."""
        if self._probabilities is None:
            self._probabilities = self._normal(self._generator).softmax(dim=1)
        return self._probabilities

    def arguments(self, option: Option) -> dict:
        """Keywords of the loss, next to the logits."""
        keywords = dict(option.arguments)
        keywords["target"] = self.probabilities if option.probabilities else self.target
        if option.weighted:
            keywords["weight"] = self.weight
        return keywords

    def copy(self) -> "Problem":
        """The same inputs in memory of their own."""
        copied = copy.copy(self)
        copied.logits, copied.target = self.logits.clone(), self.target.clone()
        if self._probabilities is not None:
            copied._probabilities = self._probabilities.clone()
        return copied

    def _normal(self, generator: torch.Generator) -> torch.Tensor:
        values = torch.empty(self.shape.size, device=self.device)
        values.normal_(std=SPREAD, generator=generator)
        return values.to(self.dtype)


class Forward:
    """The loss of logits that require no gradient."""

    prepares = False  # whether `prepare` is work for the device

    def __init__(self, loss: Loss, problem: Problem, option: Option):
        self.loss = loss
        self.logits = problem.logits
        self.arguments = problem.arguments(option)

    def prepare(self) -> None:
        """Off the clock, before each call."""

    def run(self) -> torch.Tensor:
        return self.loss(self.logits, **self.arguments)

    def gradient(self) -> torch.Tensor | None:
        """Of the logits, after `run`; None where the work has none."""
        return None

    def release(self) -> None:
        """Drop what the last call left."""


class ForwardBackward(Forward):
    """A training step's share: the gradient is dropped before each call, as zero_grad() does."""

    def __init__(self, loss: Loss, problem: Problem, option: Option):
        super().__init__(loss, problem, option)
        self.logits = problem.logits.detach().requires_grad_()

    def prepare(self) -> None:
        self.release()

    def run(self) -> torch.Tensor:
        loss = self.loss(self.logits, **self.arguments)
        loss.backward()
        return loss

    def gradient(self) -> torch.Tensor | None:
        return self.logits.grad

    def release(self) -> None:
        self.logits.grad = None


class Backward(ForwardBackward):
    """The backward pass alone."""

    prepares = True

    def prepare(self) -> None:
        self.release()
        self.pending = self.loss(self.logits, **self.arguments)

    def run(self) -> torch.Tensor:
        self.pending.backward()
        return self.pending

    def release(self) -> None:
        super().release()
        self.pending = None


class _Layer(torch.autograd.Function):
    """Stands for the layer that made the logits: new memory forward, a sink for gradients."""

    @staticmethod
    def forward(ctx, anchor, logits, received):
        ctx.received = received
        return logits.clone()

    @staticmethod
    def backward(ctx, grad_logits):
        ctx.received.append(grad_logits)
        return None, None, None


class OnePass(ForwardBackward):
    """Loss and gradient of a layer's output, which may be overwritten: each call gets a new one."""

    prepares = True

    def __init__(self, loss: Loss, problem: Problem, option: Option):
        super().__init__(loss, problem, option)
        self.source = problem.logits
        # What makes the layer part of a graph.
        self.anchor = torch.zeros((), device=problem.device, requires_grad=True)
        self.received = []

    def prepare(self) -> None:
        self.release()
        self.logits = _Layer.apply(self.anchor, self.source, self.received)

    def gradient(self) -> torch.Tensor | None:
        return self.received[0]

    def release(self) -> None:
        self.received.clear()
        self.logits = None


class Copy:
    """Copies the logits into memory that exists: the 100 % of the same rounds."""

    prepares = False

    def __init__(self, problem: Problem):
        self.source = problem.logits
        self.destination = torch.empty_like(self.source)

    def prepare(self) -> None:
        pass

    def run(self) -> torch.Tensor:
        return self.destination.copy_(self.source)

    def release(self) -> None:
        pass


CALL_OF_WORK: dict[str, type[Forward]] = {
    "forward": Forward,
    "backward": Backward,
    "forward_backward": ForwardBackward,
    "one_pass": OnePass,
}
