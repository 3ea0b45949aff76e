"""Ours beside the others at one head."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.comparison import Comparison, Promise, by_case
from bench.linear.cases import FASTEST_ON, MEMORY_BUDGETS, PRODUCTS_BUDGETS, SHAPES
from bench.linear.providers import TORCH
from bench.results import LinearResult


@dataclass(frozen=True)
class LinearComparison(Comparison):
    """The loss of hidden states and a head."""

    @property
    def over_products(self) -> float | None:
        """Time of ours / that of the three bare products."""
        return self.ours and self.ours.median_us / self.ours.products_us

    @property
    def memory(self) -> float | None:
        """Peak memory of ours / that of F.linear + F.cross_entropy."""
        peaks = [row.peak_bytes for row in (self.ours, self.timed(TORCH)) if row]
        return peaks[0] / peaks[1] if len(peaks) == 2 and all(peaks) else None

    def promises(self) -> Iterable[Promise]:
        case = self.case
        if (most := PRODUCTS_BUDGETS[case.device].get(case.shape)) is not None:
            yield self.promise(f"≤ {most:g}x products", self.over_products, most=most)
            if case.device in FASTEST_ON:
                yield self.promise("fastest", self.lead, least=1)
        if (most := MEMORY_BUDGETS.get((case.device, case.shape, case.dtype))) is not None:
            yield self.promise(f"memory ≤ {most:.2f}x", self.memory, most=most)


def compare(results: Sequence[LinearResult]) -> list[LinearComparison]:
    """Every case of a result file of heads."""
    return [LinearComparison(rows) for rows in by_case(results, SHAPES).values()]
