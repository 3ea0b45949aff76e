"""The ceiling: the bandwidth at which a device copies its memory, bytes read plus bytes written."""

import argparse
import json
import sys
from pathlib import Path

import torch

from bench import device_timing, timing, traffic
from bench.baselines import Copy
from bench.cases import WORKS_OF_DEVICE
from bench.environment import query_gpu
from bench.problem import Problem
from bench.shapes import Shape

SHAPES = {  # bfloat16
    "cuda": (Shape("1 GiB", (8192, 65536), ""), Shape("2 GiB", (16384, 65536), "")),
    "cpu": (Shape("1 MiB", (8, 65536), ""),),
}
REPEATS = 3
COPIES_UNDER_LOAD = 2000  # of 1 GiB: more than a second of work while the clocks are read


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
        copy = Copy(problems[0])
        for _ in range(COPIES_UNDER_LOAD):
            copy.run()
        loaded = query_gpu()
        torch.cuda.synchronize()
        for name in ("clocks.sm", "power.draw"):
            measured[f"gpu {name}, copying"] = loaded.get(name, "unknown")
    return measured


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
