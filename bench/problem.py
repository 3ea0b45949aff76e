"""The tensors of one shape and dtype, and the calls that are timed, checked and weighed on them."""

import copy
import math
from collections.abc import Callable

import torch

from bench import trained
from bench.cases import Option
from bench.providers import Loss
from bench.shapes import SPREAD, Shape

SEED = 0

Growth = Callable[[Callable[[], object]], int]  # bytes by which memory grows while it runs


class Problem:
    """Inputs that every provider and option reads: the same memory for all."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str = "cpu"):
        generator = torch.Generator(device).manual_seed(SEED)
        here = {"generator": generator, "device": device}
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self._generator = generator
        if shape.trained:
            self.inputs, self.target = trained.draw(shape, dtype, device)
        else:
            self.inputs = tuple(self._normal(size, std) for size, std in shape.inputs)
            target = shape.draw_target(generator)
            self.target = target.to(dtype) if target.is_floating_point() else target
        self.weight = (0.5 + torch.rand(shape.cols, **here)).to(dtype)  # [C]
        self._probabilities = None

    @property
    def logits(self) -> torch.Tensor:
        """[N, C, d1, ...], where they are what is given."""
        (logits,) = self.inputs
        return logits

    @property
    def logits_bytes(self) -> int:
        return math.prod(self.shape.logits_size) * self.dtype.itemsize

    @property
    def probabilities(self) -> torch.Tensor:
        """Targets, [N, C, d1, ...]; as large as the logits, so made when first asked for."""
        if self._probabilities is None:
            self._probabilities = self._normal(self.shape.logits_size, SPREAD).softmax(dim=1)
        return self._probabilities

    def arguments(self, option: Option) -> dict:
        """Keywords of the loss, next to the inputs."""
        keywords = dict(option.arguments)
        keywords["target"] = self.probabilities if option.probabilities else self.target
        if option.weighted:
            keywords["weight"] = self.weight
        return keywords

    def fingerprint(self) -> list[float]:
        """What changes when the inputs do."""
        return [each.sum(dtype=torch.float64).item() for each in self.inputs]

    def restore(self) -> None:
        """Make the inputs what they were."""
        fresh = type(self)(self.shape, self.dtype, self.device)
        for each, original in zip(self.inputs, fresh.inputs, strict=True):
            each.copy_(original)

    def call(self, work: str, loss: Loss, option: Option) -> "Forward":
        """What is checked, weighed and timed."""
        return CALL_OF_WORK[work](loss, self, option)

    def weigh(self, call: "Forward", growth: Growth) -> dict[str, int]:
        """The columns that say how much memory a call needs; it has run before."""
        call.prepare()
        return {"peak_bytes": growth(call.run)}

    def copy(self) -> "Problem":
        """The same inputs in memory of their own."""
        copied = copy.copy(self)
        copied.inputs = tuple(each.clone() for each in self.inputs)
        copied.target = self.target.clone()
        if self._probabilities is not None:
            copied._probabilities = self._probabilities.clone()
        return copied

    def _normal(self, size: tuple[int, ...], std: float) -> torch.Tensor:
        values = torch.empty(size, device=self.device)
        values.normal_(std=std, generator=self._generator)
        return values.to(self.dtype)


class Forward:
    """The loss of inputs that require no gradient."""

    prepares = False  # whether `prepare` is work for the device
    on_host = False  # whether the host's time counts, also where a device does the work

    def __init__(self, loss: Loss, problem: Problem, option: Option):
        self.loss = loss
        self.inputs = problem.inputs
        self.arguments = problem.arguments(option)

    def prepare(self) -> None:
        """Off the clock, before each call."""

    def run(self) -> torch.Tensor:
        return self.loss(*self.inputs, **self.arguments)

    def gradients(self) -> tuple[torch.Tensor, ...]:
        """Of the inputs, after `run`; empty where the work has none."""
        return ()

    def release(self) -> None:
        """Drop what the last call left."""


class ForwardBackward(Forward):
    """A training step's share: gradients are dropped before each call, as zero_grad() does."""

    def __init__(self, loss: Loss, problem: Problem, option: Option):
        super().__init__(loss, problem, option)
        self.inputs = tuple(each.detach().requires_grad_() for each in problem.inputs)

    def prepare(self) -> None:
        self.release()

    def run(self) -> torch.Tensor:
        loss = self.loss(*self.inputs, **self.arguments)
        loss.backward()
        return loss

    def gradients(self) -> tuple[torch.Tensor, ...]:
        return tuple(each.grad for each in self.inputs)

    def release(self) -> None:
        for each in self.inputs:
            each.grad = None


class Backward(ForwardBackward):
    """The backward pass alone."""

    prepares = True

    def prepare(self) -> None:
        self.release()
        self.pending = self.loss(*self.inputs, **self.arguments)

    def run(self) -> torch.Tensor:
        self.pending.backward()
        return self.pending

    def release(self) -> None:
        super().release()
        self.pending = None


class HostCall(ForwardBackward):
    """The same for its latency: how long the caller is kept."""

    on_host = True


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
        self.inputs = (_Layer.apply(self.anchor, self.source, self.received),)

    def gradients(self) -> tuple[torch.Tensor, ...]:
        return (self.received[0],)

    def release(self) -> None:
        self.received.clear()
        self.inputs = ()


CALL_OF_WORK: dict[str, type[Forward]] = {
    "forward": Forward,
    "backward": Backward,
    "forward_backward": ForwardBackward,
    "one_pass": OnePass,
    "eager": HostCall,
    "compiled": HostCall,
    "graph": ForwardBackward,
}
