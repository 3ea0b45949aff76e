"""What a part of a training step costs: measured time, and measured growth of resident memory."""

import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    seconds: float  # of the fastest step: what other programs do to a machine only ever adds
    bytes: int  # of the largest step


class Span:
    """From the moment a tensor exists until its gradient does: all that follows it in the model,
    forward and backward, and nothing else."""

    def __init__(self):
        self.seconds: list[float] = []
        self.bytes: list[int] = []

    def watch(self, tensor: Tensor) -> None:
        resident = status_bytes("VmRSS")
        start = time.perf_counter()

        def gradient_has_come(_: Tensor) -> None:
            self.seconds.append(time.perf_counter() - start)
            self.bytes.append(status_bytes("VmHWM") - resident)

        tensor.register_hook(gradient_has_come)

    def cost(self) -> Cost | None:
        """None where nothing was watched: a loss that never makes its logits has no such span."""
        return Cost(min(self.seconds), max(self.bytes)) if self.seconds else None


class ProcessPeak:
    """The most memory this process ever had resident, although its spans restart the kernel's
    high-water mark, each to see its own peak."""

    def __init__(self):
        self.bytes = 0

    def restart_mark(self) -> None:
        self.bytes = max(self.bytes, status_bytes("VmHWM"))
        CLEAR_REFS.write_text("5")  # proc(5): the mark falls to what is resident now


def status_bytes(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024  # the kernel writes kB
    raise KeyError(field)
