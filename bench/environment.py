"""Where and how a result was measured."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
PROC_STAT = Path("/proc/stat")
GPU_FIELDS = (
    "name",
    "driver_version",
    "compute_cap",
    "memory.total",
    "pstate",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
)
PACKAGES = (  # of the other providers, and what they are made with
    "triton",
    "torchvision",
    "liger-kernel",
    "quack-kernels",
    "nvidia-cutlass-dsl",
    "cut-cross-entropy",
    "flash-attn",
    "fla-core",
    "flag-gems",
    "cuda-tile",
    "apex",
    "transformer-engine",
    "mmcv",
)
MEASURED_SOURCES = ("csrc", "torchce_cuda", "setup.py", "bench/*.py", "demo/transformer.py")


def describe(device: str = "cpu") -> dict[str, str]:
    """Machine, versions, commit, date and command of this run: the columns that every row carries.

    A GPU is named with its driver, where a CPU has its instruction set.
    """
    from torchce_cuda.__main__ import report  # late: `gpu-report` begins before there is a build

    installed = report()
    machine, isa = cpu_model(), installed["CPU kernels"]
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        machine = installed["GPU"]
        isa = f"sm_{major}{minor}, driver {query_gpu().get('driver_version', 'unknown')}"
    return {
        "machine": machine,
        "threads": installed["CPU threads"],
        "isa": isa,
        "torch": installed["torch"],
        "python": installed["python"],
        "package": installed["torchce_cuda"],
        "commit": commit(),
        "date": today(),
        "command": command(sys.argv[1:]),
        "packages": packages(),
    }


def command(arguments: Sequence[str]) -> str:
    """What measures the same on any machine: without the file that results go to on this one."""
    words, rest = ["python", "-m", "bench"], iter(arguments)
    for word in rest:
        if word == "--csv":
            next(rest)
        elif not word.startswith("--csv="):
            words.append(word)
    return shlex.join(words)


def describe_host() -> dict[str, str]:
    """Processor, GPU with its clocks and power, versions, commit and date; needs no build."""
    gpu = query_gpu()
    if not gpu and torch.cuda.is_available():  # nvidia-smi is not everywhere
        capability = "{}.{}".format(*torch.cuda.get_device_capability())
        gpu = {"name": torch.cuda.get_device_name(), "compute_cap": capability}
    return {
        "cpu": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "commit": commit(),
        "date": today(),
        **{f"gpu {field}": value for field, value in gpu.items()},
    }


def query_gpu() -> dict[str, str]:
    """What nvidia-smi says of the first GPU that CUDA sees, with units; nothing without one."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    query = f"--query-gpu={','.join(GPU_FIELDS)}"
    command = ["nvidia-smi", f"--id={first}", query, "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = answer.stdout.strip().split(", ")
    return dict(zip(GPU_FIELDS, values, strict=True))


def clocks() -> str:
    """What the GPU ran at a moment ago; nothing without one."""
    known = query_gpu()
    names = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
    return ", ".join(f"{name} {known[name]}" for name in names if name in known)


def packages() -> str:
    """Name and version of each of `PACKAGES` that is installed."""
    found = []
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


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
    """The commit measured, '+changes' if its sources differ; outside git TORCHCE_COMMIT says it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD").strip()
        changed = _git("status", "--porcelain", "--", *MEASURED_SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("TORCHCE_COMMIT", "unknown")
    return f"{head}+changes" if changed else head


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
