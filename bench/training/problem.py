"""A model and its tokens, the step that is timed, and the memory that it takes."""

import copy
import itertools
import math
from collections.abc import Callable

import torch

from bench.cases import Option
from bench.problem import SEED, Forward, Growth, Problem
from bench.providers import Loss
from bench.training.cases import TrainingShape
from demo.transformer import Transformer

LEARNING_RATE = 1e-3
MOST_INTERPOLATED = 6  # measurements, before the search merely halves


class TrainingProblem(Problem):
    """Random tokens, and a model that each call gets a copy of."""

    def __init__(self, shape: TrainingShape, dtype: torch.dtype, device: str = "cpu"):
        super().__init__(shape, dtype, device)
        size = (shape.batch, shape.model["context"])
        self.tokens = torch.randint(shape.cols, size, generator=self._generator, device=device)
        torch.manual_seed(SEED)
        self.model = Transformer(**shape.model).to(device, dtype)

    def call(self, work: str, loss: Loss, option: Option) -> "Step":
        return Step(loss, self)

    def weigh(self, call: "Step", growth: Growth) -> dict[str, int]:
        state = call.state_bytes()

        def peak(batch: int) -> float:
            """Of model, optimizer and step."""
            other = TrainingProblem(self.shape.with_batch(batch), self.dtype, self.device)
            try:
                step = Step(call.loss, other)
                step.run()  # makes the optimizer's state, and compiles what is compiled
                return state + growth(step.run)
            except torch.OutOfMemoryError:
                return math.inf

        # Each batch is compiled anew; by default the ninth would not be, and none would know.
        with torch._dynamo.config.patch(recompile_limit=1000):
            largest = largest_batch(peak, self.shape.memory_limit, self.shape.batch)
        return super().weigh(call, growth) | {"state_bytes": state, "largest_batch": largest}


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


def largest_batch(peak: Callable[[int], float], limit: float, start: int) -> int:
    """The largest batch whose peak is within the limit; it was measured, and so was the next.

    Memory grows almost linearly, so the line through the two measurements nearest to the limit
    says where to look next.
    """
    peaks = {start: peak(start)}
    while True:
        fits = max((batch for batch in peaks if peaks[batch] <= limit), default=0)
        exceeds = min((batch for batch in peaks if peaks[batch] > limit), default=None)
        if exceeds == fits + 1:
            return fits
        least, most = fits + 1, 4 * fits if exceeds is None else exceeds - 1
        finite = [batch for batch in peaks if math.isfinite(peaks[batch])]
        nearest = sorted(finite, key=lambda batch: abs(peaks[batch] - limit))[:2]
        guess = (least + most) // 2
        if exceeds is None and len(peaks) == 1:
            guess = 2 * start
        elif len(nearest) == 2 and len(peaks) < MOST_INTERPOLATED:
            slope = (peaks[nearest[0]] - peaks[nearest[1]]) / (nearest[0] - nearest[1])
            if slope > 0:
                guess = nearest[0] + math.floor((limit - peaks[nearest[0]]) / slope)
        guess = min(max(guess, least), most)
        peaks[guess] = peak(guess)
