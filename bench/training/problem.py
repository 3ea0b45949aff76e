"""A model and its tokens, the step that is timed, and the memory that it takes."""

import copy
import itertools
import math
from collections.abc import Callable, Mapping

import torch

from bench.cases import Option
from bench.problem import SEED, Forward, Growth, Problem
from bench.providers import Loss
from bench.training.cases import TrainingShape
from demo.transformer import Transformer

LEARNING_RATE = 1e-3


class TrainingProblem(Problem):
    """Random tokens, and a model that each call gets a copy of."""

    def __init__(
        self,
        shape: TrainingShape,
        dtype: torch.dtype,
        device: str = "cpu",
        model: Transformer | None = None,  # one that was made already; batches may differ
    ):
        super().__init__(shape, dtype, device)
        size = (shape.batch, shape.model["context"])
        self.tokens = torch.randint(shape.cols, size, generator=self._generator, device=device)
        if model is None:
            torch.manual_seed(SEED)
            with torch.device(device):
                model = Transformer(**shape.model).to(dtype)
        self.model = model

    def call(self, work: str, loss: Loss, option: Option) -> "Step":
        return Step(loss, self)

    def weigh(self, call: "Step", growth: Growth) -> dict[str, int]:
        weighed = super().weigh(call, growth)
        state = call.state_bytes()

        def peak(batch: int) -> float:
            """Of model, optimizer and step."""
            shape = self.shape.with_batch(batch)
            other = TrainingProblem(shape, self.dtype, self.device, self.model)
            try:
                step = Step(call.loss, other)
                step.run()  # makes the optimizer's state, and compiles what is compiled
                return state + growth(step.run)
            except torch.OutOfMemoryError:
                return math.inf

        # Each batch is compiled anew; by default the ninth would not be, and none would know.
        with torch._dynamo.config.patch(recompile_limit=1000):
            known = {self.shape.batch: state + weighed["peak_bytes"]}
            largest = largest_batch(peak, self.shape.memory_limit, known)
        return weighed | {"state_bytes": state, "largest_batch": largest}


class Step(Forward):
    """A training step of a model of its own."""

    def __init__(self, loss: Loss, problem: TrainingProblem):
        self.loss = loss
        self.tokens, self.target = problem.tokens, problem.target
        self.model = copy.deepcopy(problem.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE)

    def run(self) -> torch.Tensor:
        loss = self.loss(self.model(self.tokens), self.model.token.weight, target=self.target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def state_bytes(self) -> int:
        """What there is between steps: the model, and what the optimizer knows of it."""
        known = (state.values() for state in self.optimizer.state.values())
        tensors = itertools.chain(
            self.model.parameters(), self.model.buffers(), itertools.chain.from_iterable(known)
        )
        return sum(each.nbytes for each in tensors if isinstance(each, torch.Tensor))


def largest_batch(peak: Callable[[int], float], limit: float, known: Mapping[int, float]) -> int:
    """The largest batch whose peak is within the limit; it was measured, and so was the next.

    `known` has a peak to begin with. Memory grows almost linearly, so the line through the two
    measurements nearest to the limit says where to look next.
    """
    peaks = dict(known)
    while True:
        exceeds = min((batch for batch in peaks if peaks[batch] > limit), default=None)
        fits = max((batch for batch in peaks if exceeds is None or batch < exceeds), default=0)
        if exceeds == fits + 1:
            return fits
        least, most = fits + 1, 4 * fits if exceeds is None else exceeds - 1
        guess = (least + most) // 2
        # Half of the time it halves, for where memory grows by steps; and where it ran out.
        if exceeds is None or (len(peaks) % 2 and math.isfinite(peaks[exceeds])):
            guess = min(max(on_line(peaks, limit, guess), least), most)
        peaks[guess] = peak(guess)


def on_line(peaks: Mapping[int, float], limit: float, otherwise: int) -> int:
    """Where the line through the two peaks nearest to the limit meets it, if it rises at all."""
    finite = [batch for batch in peaks if math.isfinite(peaks[batch])]
    nearest = sorted(finite, key=lambda batch: abs(peaks[batch] - limit))[:2]
    if len(nearest) < 2:
        return otherwise
    near, next_ = nearest
    slope = (peaks[near] - peaks[next_]) / (near - next_)
    return near + math.floor((limit - peaks[near]) / slope) if slope > 0 else otherwise
