"""Where and how a result was measured: the columns that every row carries."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

from torchce_cuda.__main__ import report

ROOT = Path(__file__).resolve().parent.parent
PROC_STAT = Path("/proc/stat")
MEASURED_SOURCES = ("csrc", "torchce_cuda", "setup.py", "bench/*.py")


def describe() -> dict[str, str]:
    """Machine, versions, commit, date and command of this run."""
    installed = report()
    return {
        "machine": cpu_model(),
        "threads": installed["CPU threads"],
        "isa": installed["CPU kernels"],
        "torch": installed["torch"],
        "python": installed["python"],
        "package": installed["torchce_cuda"],
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
    }


class OtherProcesses:
    """How much of the processors everything else took: `share` since this was made."""

    def __init__(self):
        self._before = self._seconds()
        self._started = time.monotonic()

    def share(self) -> float | None:
        """Of all processors' time, stolen time included; None where the system does not tell."""
        if self._before is None:
            return None
        available = (time.monotonic() - self._started) * os.cpu_count()
        return max(0.0, self._seconds() - self._before) / available

    @staticmethod
    def _seconds() -> float | None:
        if not PROC_STAT.exists():
            return None
        columns = [int(column) for column in PROC_STAT.read_text().splitlines()[0].split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = columns
        ticks = user + nice + system + irq + softirq + steal
        own = os.times()
        return ticks / os.sysconf("SC_CLK_TCK") - own.user - own.system


def cpu_model() -> str:
    """The name of the processor as the kernel gives it, or its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def commit() -> str:
    """The commit measured, '+changes' if its sources differ; 'unknown' outside git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD").strip()
        changed = _git("status", "--porcelain", "--", *MEASURED_SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+changes" if changed else head


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
