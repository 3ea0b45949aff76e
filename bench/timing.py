"""Interleaved timing: every contender in every round, so that all see the same minutes."""

import gc
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Protocol

WARM_UP_CALLS = 3  # of a short call; a long one has warmed up when it was checked
LONG_CALL_MICROSECONDS = 5e5
MIN_ROUNDS = 7  # the fewest that give quartiles a meaning
MAX_ROUNDS = 51
SECONDS_PER_CONTENDER = 1.0
SAMPLE_MICROSECONDS = 2000.0  # shorter calls are repeated: no interrupt may decide a sample


class Contender(Protocol):
    """Something to time: `prepare` before each call, `release` after the last, off the clock."""

    def prepare(self) -> None: ...

    def run(self) -> object: ...

    def release(self) -> None: ...


@dataclass(frozen=True)
class Summary:
    """Microseconds per call: median and quartiles over the rounds."""

    median: float
    q1: float
    q3: float
    rounds: int
    calls: int = 1  # calls per round, averaged

    @classmethod
    def of(cls, samples: Sequence[float], calls: int = 1) -> "Summary":
        q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, q1, q3, len(samples), calls)

    def of_one(self, count: int) -> "Summary":
        """Of one call, where each that was timed stands for `count`."""
        times = (self.median / count, self.q1 / count, self.q3 / count)
        return Summary(*times, self.rounds, self.calls * count)


def time_calls(contender: Contender, calls: int) -> float:
    """Mean time of one call in microseconds. What a call returns is freed inside its time."""
    elapsed = 0
    for _ in range(calls):
        contender.prepare()
        start = perf_counter_ns()
        contender.run()
        elapsed += perf_counter_ns() - start
    contender.release()
    return elapsed / calls / 1e3


def calls_per_sample(microseconds: float) -> int:
    """How often to repeat a call of this length so that a sample is long enough."""
    return max(1, math.ceil(SAMPLE_MICROSECONDS / microseconds))


def rounds_for(round_microseconds: float, contenders: int) -> int:
    """Rounds that fit the time given to each contender, within the limits."""
    fitting = int(contenders * SECONDS_PER_CONTENDER * 1e6 / round_microseconds)
    return min(MAX_ROUNDS, max(MIN_ROUNDS, fitting))


def rotated(names: Sequence[str], by: int) -> list[str]:
    """The order of one round, which begins elsewhere each time: a drift within rounds is shared."""
    shift = by % len(names)
    return [*names[shift:], *names[:shift]]


def time_one(contender: Contender, clock: Callable[[Contender, int], float]) -> float:
    """Microseconds of a warm call."""
    first = clock(contender, 1)
    if first >= LONG_CALL_MICROSECONDS:
        return first
    clock(contender, WARM_UP_CALLS - 1)
    return clock(contender, 1)


def interleave(
    contenders: Mapping[str, Contender], clock: Callable[[Contender, int], float] = time_calls
) -> dict[str, Summary]:
    """Time all contenders, round by round; `clock` is `time_calls` or another that does as it."""
    names = list(contenders)
    single = {name: time_one(contenders[name], clock) for name in names}
    calls = {name: calls_per_sample(single[name]) for name in names}
    rounds = rounds_for(sum(calls[name] * single[name] for name in names), len(names))

    samples = {name: [] for name in names}
    gc.collect()
    gc.disable()  # a collection would land on whoever is being timed
    try:
        for index in range(rounds):
            for name in rotated(names, index):
                samples[name].append(clock(contenders[name], calls[name]))
    finally:
        gc.enable()
    return {name: Summary.of(samples[name], calls[name]) for name in names}
