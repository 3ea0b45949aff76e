"""The ceiling: the bandwidth at which a device copies its memory, bytes read plus bytes written."""

import argparse
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from bench import device_timing, timing, traffic
from bench.baselines import Copy
from bench.cases import WORKS_OF_DEVICE
from bench.environment import query_gpu
from bench.problem import Problem
from bench.shapes import Shape
from torchce_cuda.chunks import _gemm_adds_wider

SHAPES = {  # bfloat16
    "cuda": (Shape("1 GiB", (8192, 65536), ""), Shape("2 GiB", (16384, 65536), "")),
    "cpu": (Shape("1 MiB", (8, 65536), ""),),
}
REPEATS = 3
COPIES_UNDER_LOAD = 1000  # of 1 GiB: about a second, the time that a power reading is a mean of


def measure(device: str) -> dict[str, str | float]:
    """The best of several medians in GB/s, and what the device is and does meanwhile."""
    clock = device_timing.time_calls if device == "cuda" else timing.time_calls
    problems = [Problem(shape, torch.bfloat16, device) for shape in SHAPES[device]]
    best = 0.0
    for _ in range(REPEATS):
        times = timing.interleave({each.shape.name: Copy(each) for each in problems}, clock)
        for problem in problems:
            moved = traffic.copy(problem.shape.rows, problem.shape.cols, problem.dtype.itemsize)
            best = max(best, moved / times[problem.shape.name].median / 1e3)
    measured = {"copy GB/s": round(best, 1)}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(device)
        measured["gpu multiprocessors"] = properties.multi_processor_count
        measured["gpu L2 MiB"] = properties.L2_cache_size / 2**20
        dtypes = (torch.bfloat16, torch.float16)
        added = [str(each) for each in dtypes if _gemm_adds_wider(each, torch.float32, device)]
        measured["GEMM adds to float32"] = ", ".join(added) or "no 16-bit products"
        loaded = under_load(Copy(problems[0]).run, query_gpu)
        for name in ("clocks.sm", "power.draw"):
            measured[f"gpu {name}, copying"] = loaded.get(name, "unknown")
    return measured


def under_load(copy: Callable[[], object], query: Callable[[], dict]) -> dict[str, str]:
    """What the device says of itself while it copies: before, and for as long as it is asked."""

    def copy_many() -> None:
        for _ in range(COPIES_UNDER_LOAD):
            copy()
        torch.cuda.synchronize()

    copy_many()
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(query)
        while not asked.done():
            copy_many()
    return asked.result()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bandwidth", description=__doc__)
    parser.add_argument("--device", choices=WORKS_OF_DEVICE, default="cuda")
    parser.add_argument("--into", type=Path, required=True, help="a JSON file to add to")
    arguments = parser.parse_args()
    known = json.loads(arguments.into.read_text()) if arguments.into.exists() else {}
    measured = measure(arguments.device)
    arguments.into.write_text(json.dumps(known | measured, indent=2) + "\n")
    print(f"copy: {measured['copy GB/s']:.0f} GB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
