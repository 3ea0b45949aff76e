"""How a time grows: the exponent of a power of what grows, by least squares."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

FEWEST_POINTS = 3  # two lie on a line whatever they are


@dataclass(frozen=True)
class Fit:
    exponent: float
    error: float  # standard, of the exponent

    def __str__(self) -> str:
        return f"{self.exponent:.2f} ± {self.error:.2f}"


def fit(times: Mapping[int, float]) -> Fit | None:
    """The slope of log time over log size, and its standard error."""
    if len(times) < FEWEST_POINTS:
        return None
    xs, ys = [math.log(size) for size in times], [math.log(time) for time in times.values()]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    points = [(x - mean_x, y - mean_y) for x, y in zip(xs, ys, strict=True)]
    spread = sum(x * x for x, _ in points)
    slope = sum(x * y for x, y in points) / spread
    residual = sum((y - slope * x) ** 2 for x, y in points) / (len(points) - 2)
    return Fit(slope, math.sqrt(residual / spread))
