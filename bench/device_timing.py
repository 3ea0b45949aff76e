"""Timing on a CUDA device: by events around long calls, or around replays of a graph of short ones.

The host enqueues a call in some 50 us. A longer one is enqueued while the one before it runs, so
events around it see the device alone; shorter ones are captured as a graph, many in a row. Either
way a call finds none of its inputs in the L2 cache: they are larger, or each call of a graph has
inputs of its own.
"""

import math
from collections.abc import Callable, Sequence

import torch

from bench import timing
from bench.problem import Problem
from bench.timing import WARM_UP_CALLS, Contender

LONG_CALL_BYTES = 384 << 20  # of logits: to read them takes more than 80 us at up to 5 TB/s
CACHES = 3  # L2 sizes that the logits of a graph fill together
FEWEST_COPIES = 4  # to begin a replay takes some us, which its calls share
MOST_COPIES = 64  # a few KiB fit any cache however often they are copied


def copies(problem: Problem) -> list[Problem]:
    """The problem and its copies to capture as one graph; none where single calls are long."""
    if problem.logits_bytes >= LONG_CALL_BYTES:
        return []
    cache_bytes = torch.cuda.get_device_properties(problem.device).L2_cache_size
    count = math.ceil(CACHES * cache_bytes / problem.logits_bytes)
    count = min(max(count, FEWEST_COPIES), MOST_COPIES)
    return [problem, *(problem.copy() for _ in range(count - 1))]


def time_calls(contender: Contender, calls: int) -> float:
    """Mean device time of one call in microseconds; a call ahead, off the clock, keeps the device
    busy while the host enqueues the others."""
    contender.prepare()
    contender.run()
    pairs = []
    for _ in range(calls):
        contender.prepare()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        contender.run()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    contender.release()
    return sum(start.elapsed_time(end) for start, end in pairs) / calls * 1e3


def time_on_host(contender: Contender, calls: int) -> float:
    """Mean time in microseconds after which a call returns to the host, whatever the device still
    does; it was idle before the first."""
    torch.cuda.synchronize()
    return timing.time_calls(contender, calls)


class Replay:
    """Calls in a row as a graph, and what they need before them as another."""

    def __init__(self, calls: Sequence[Contender]):
        self._calls = calls
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_CALLS):
                for call in calls:
                    call.prepare()
                    call.run()
                    call.release()
        torch.cuda.synchronize()
        self._preparation = None
        if calls[0].prepares:
            self._preparation = _capture(lambda: [call.prepare() for call in calls])
        self._work = _capture(lambda: [call.run() for call in calls])

    def prepare(self) -> None:
        if self._preparation is not None:
            self._preparation.replay()

    def run(self) -> None:
        self._work.replay()

    def release(self) -> None:
        """The graph keeps its memory, and with it the results, for the next replay."""


def _capture(enqueue: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    # A capture that fails leaves its own stream the current one; the outer block does not.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        enqueue()
    return graph
