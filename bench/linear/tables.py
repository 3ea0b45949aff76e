"""The tables of the loss of a head."""

from collections.abc import Callable
from pathlib import Path

from bench.comparison import Run, relative_spread, time_ratio
from bench.linear.comparison import LinearComparison
from bench.linear.providers import PROVIDERS, TORCH
from bench.providers import OURS
from bench.results import LinearResult
from bench.tables import (
    BUDGET,
    OURS_TIME,
    SHAPE,
    Chapter,
    Column,
    duration,
    errors,
    lost_of,
    microseconds,
    of,
    page,
    provenance,
    ratio,
    table,
)

ERRORS_OF = ("loss", "hidden", "head_target", "head_other")


def summary(run: Run) -> str:
    """The table of the project's README."""
    columns = [*times(run), Column(f"peak MiB, ours / `{TORCH}`", peaks)]
    return "\n\n".join(
        [provenance(run), table(run.comparisons, columns), lost_of(run.comparisons, "cases")]
    )


def full(run: Run, folder: Path) -> str:
    """Everything measured on one machine; plots, if it had any, would be in `folder`."""
    weighed = [each for each in run.comparisons if each.ours and each.ours.peak_bytes is not None]
    chapters = [
        Chapter(
            "Times",
            "In parentheses: the time of another provider / ours.",
            table(run.comparisons, [*times(run), PRODUCTS, BUDGET]),
        ),
        Chapter(
            "Spread",
            "Interquartile range / median.",
            table(run.comparisons, [*SHAPE, *of_each(run, spread)]),
        ),
        Chapter(
            "Peak memory",
            "Beyond the inputs, gradients included, in MiB.",
            table(weighed, [*SHAPE, *of_each(run, peak), MEMORY]),
        ),
        Chapter(
            "Errors",
            "Largest relative error against float64: loss; gradient of the hidden states; of the "
            "head at the target classes; at the others.",
            table(run.comparisons, [*SHAPE, *of_each(run, errors_of)]),
        ),
    ]
    return page(run, folder, [*times(run), BUDGET], chapters)


def names(run: Run) -> list[str]:
    """Who took part."""
    present = {row.provider for row in run.results}
    return [name for name in PROVIDERS if name in present]


def of_each(run: Run, cell: Callable[[LinearResult | None], str]) -> list[Column]:
    """A column for each provider."""
    return [
        Column(
            "ours" if name == OURS else f"`{name}`",
            lambda row, name=name: cell(row.timed(name)),
        )
        for name in names(run)
    ]


def times(run: Run) -> list[Column]:
    others = [
        Column(f"`{name}`", lambda row, name=name: time_and_ratio(row, name))
        for name in names(run)
        if name != OURS
    ]
    return [*SHAPE, OURS_TIME, OVER_PRODUCTS, *others]


def time_and_ratio(comparison: LinearComparison, provider: str) -> str:
    other = comparison.timed(provider)
    return f"{duration(other)} ({ratio(time_ratio(other, comparison.ours))})" if other else "-"


def spread(result: LinearResult | None) -> str:
    return of(result, relative_spread, ".0%")


def errors_of(result: LinearResult | None) -> str:
    return errors(result, ERRORS_OF)


def peak(result: LinearResult | None) -> str:
    if result is None or result.peak_bytes is None:
        return "-"
    return f"{result.peak_bytes / 2**20:.0f}"


def peaks(comparison: LinearComparison) -> str:
    both = f"{peak(comparison.ours)} / {peak(comparison.timed(TORCH))}"
    return both if comparison.memory is None else f"{both} ({ratio(comparison.memory)})"


def products(comparison: LinearComparison) -> str:
    timed = [row for row in (comparison.ours, *comparison.others) if row]
    return microseconds(timed[0].products_us) if timed else "-"


OVER_PRODUCTS = Column("ours / bare products", lambda row: ratio(row.over_products))
PRODUCTS = Column("three bare products", products)
MEMORY = Column(f"ours / `{TORCH}`", lambda row: ratio(row.memory))
