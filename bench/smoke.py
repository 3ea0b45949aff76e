"""Right before fast: a few small problems for each way through the kernels, against float64.

What the tests do thoroughly, in seconds; small enough with `--few` to run under a sanitizer.
"""

import argparse
import dataclasses
import sys

import torch

from bench.cases import OPTIONS, WORKS_OF_DEVICE
from bench.check import TOLERANCE, Expected
from bench.problem import CALL_OF_WORK, Problem
from bench.providers import OURS, PROVIDERS
from bench.shapes import Shape

SHAPES = (
    Shape("short", (70, 10), "a few threads share a row"),
    Shape("some", (33, 1000), "more threads share a row, or a warp"),
    Shape("warp", (17, 2300), "a warp shares a row"),
    Shape("block", (9, 4099), "a block shares a row that ends within 16 bytes"),
    Shape("odd", (300, 50257), "no row starts aligned, and rows feed every multiprocessor"),
    Shape("long", (3, 128256), "rows are few: blocks share them, in clusters or in segments"),
    Shape("longest", (2, 1_000_003), "rows that no cluster holds"),
    Shape("positions", (2, 21, 16, 17), "classes in the middle: a thread has a row to itself"),
    Shape("many-classes", (1, 5003, 9), "the same with rows of many segments"),
)
WORKS = ("forward", "forward_backward", "one_pass")
SMOKE_OPTIONS = ("plain", "all", "weight+focal", "focal+smoothing", "probabilities+focal")
EVERYTHING = dict.fromkeys(TOLERANCE, SMOKE_OPTIONS)
FEW_ROWS = 3
FEW_WORKS = ("forward_backward", "one_pass")  # the former begins with what "forward" is
# Each dtype whose speed counts, class indices alone and what has a term per class, of each kind.
FEW = {
    torch.float32: ("plain", "all"),
    torch.bfloat16: ("plain", "probabilities+focal"),
    torch.float16: ("plain", "smoothing"),
}


def tolerance(dtype: torch.dtype) -> float:
    """One rounding of the gradient to `dtype` and float32 arithmetic: what ours must reach, where
    the benchmark lets every provider pass that is as good as F.cross_entropy."""
    return min(TOLERANCE[dtype], max(torch.finfo(dtype).eps, 2e-5))


def few(shape: Shape) -> Shape:
    rows = min(FEW_ROWS, shape.size[0])
    return dataclasses.replace(shape, size=(rows, *shape.size[1:]))


def wrong(
    device: str,
    shape: Shape,
    dtype: torch.dtype,
    options: tuple[str, ...],
    works: tuple[str, ...],
) -> list[str]:
    """What is not as exact as it must be at one shape and dtype."""
    found = []
    problem = Problem(shape, dtype, device)
    for option in (OPTIONS[name] for name in options):
        expected = Expected(problem, option)
        for work in works:
            call = CALL_OF_WORK[work](PROVIDERS[OURS].load(work), problem, option)
            errors = expected.errors(call)
            if not errors.within(tolerance(dtype)):
                found.append(f"{shape.name} {shape.label} {dtype} {option.name} {work}: {errors}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.smoke", description=__doc__)
    parser.add_argument("--device", choices=WORKS_OF_DEVICE, default="cuda")
    parser.add_argument("--few", action="store_true", help="fewer rows, dtypes, options and works")
    arguments = parser.parse_args()
    shapes = [few(shape) for shape in SHAPES] if arguments.few else SHAPES
    chosen = FEW if arguments.few else EVERYTHING
    works = FEW_WORKS if arguments.few else WORKS

    found = []
    for shape in shapes:
        for dtype, options in chosen.items():
            found += wrong(arguments.device, shape, dtype, options, works)
    for line in found:
        print(line)
    count = len(shapes) * sum(map(len, chosen.values())) * len(works)
    print(f"{count - len(found)} of {count} results right")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
