"""Peak memory of a call.

On a CPU it is the growth of the resident set, in a process of its own per provider.

Memory that earlier calls left with the allocator would hide what a call needs. So the process
returns freed blocks to the system at once, calls once to load and compile, and only then resets the
kernel's high-water mark. On a CUDA device PyTorch's allocator counts what a call asks for.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.environment import ROOT
from bench.subjects import SUBJECTS

# glibc otherwise raises its thresholds with every large block freed, up to keeping 32 MiB blocks.
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

# Where a process has freed a large block, as any that trains has, glibc takes blocks of up to this
# from its heap; larger ones are new pages.
SETTLED = 32 << 20
# What is checked is freed in pieces. Of those the heap would keep, they become a hole in which all
# tensors of one provider fit, and in the next run those of another.
WITHOUT_HOLES = 1 << 20


def take_from_heap(largest: int) -> None:
    """Have larger blocks of the C library be new pages, returned to the system when freed."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:  # glibc
        mmap_threshold, trim_threshold = -3, -1
        set_option(mmap_threshold, largest)
        set_option(trim_threshold, 2 * largest)


def resident_growth(run: Callable[[], object]) -> int:
    """Bytes by which the resident set of this process grows at most while `run` runs."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to the present size
    before = _status_bytes("VmRSS")
    result = run()
    peak = _status_bytes("VmHWM")
    del result
    return max(0, peak - before)


def allocated_growth(run: Callable[[], object]) -> int:
    """Bytes by which the memory allocated on the CUDA device grows at most while `run` runs."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def measure(
    subject: str,
    provider: str,
    shape: str,
    dtype: str,
    threads: int,
    cases: Sequence[tuple[str, str]],
) -> dict[tuple[str, str], dict[str, int]]:
    """What `Problem.weigh` says of each (work, option), in a new process; empty where it fails."""
    request = {
        "subject": subject,
        "provider": provider,
        "shape": shape,
        "dtype": dtype,
        "threads": threads,
        "cases": cases,
    }
    finished = subprocess.run(
        [sys.executable, "-m", "bench.memory"],
        input=json.dumps(request),
        cwd=ROOT,
        env=os.environ | RETURN_FREED,
        capture_output=True,
        text=True,
    )
    if finished.returncode != 0:
        reason = finished.stderr.strip().splitlines()[-1:]
        print(f"  no memory of {provider}: {' '.join(reason)}", file=sys.stderr)
        return {}
    return {(work, option): weighed for work, option, weighed in json.loads(finished.stdout)}


def _answer(request: dict) -> list[tuple[str, str, dict[str, int]]]:
    torch.set_num_threads(request["threads"])
    subject = SUBJECTS[request["subject"]]
    problem = subject.problem(subject.shapes[request["shape"]], getattr(torch, request["dtype"]))
    provider = subject.providers[request["provider"]]
    answers = []
    for work, option in request["cases"]:
        call = problem.call(work, provider.load(work), subject.options[option])
        call.prepare()
        call.run()
        answers.append((work, option, problem.weigh(call, resident_growth)))
    return answers


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
