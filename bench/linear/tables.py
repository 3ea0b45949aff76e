"""The tables of the loss of a head."""

from pathlib import Path

from bench.comparison import Run
from bench.linear.comparison import LinearComparison
from bench.linear.providers import TORCH, TORCH_LINEAR
from bench.providers import COMPILED, OURS
from bench.results import LinearResult
from bench.tables import (
    BUDGET,
    FASTEST_OTHER,
    OURS_TIME,
    SHAPE,
    Chapter,
    Column,
    errors,
    everyone_else,
    lost_of,
    mebibytes,
    microseconds,
    of_each,
    page,
    provenance,
    ratio,
    spread,
    table,
    times_of_others,
)

SHOWN = (OURS, TORCH, COMPILED, TORCH_LINEAR)  # who has columns
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
    others = everyone_else(run, SHOWN, SHAPE, ERRORS_OF)
    chapters = [
        Chapter(
            "Times",
            "In parentheses: the time of another provider / ours.",
            table(run.comparisons, [*times(run), PRODUCTS, BUDGET]),
        ),
        Chapter(
            "Spread",
            "Interquartile range / median.",
            table(run.comparisons, [*SHAPE, *of_each(run, spread, SHOWN)]),
        ),
        Chapter(
            "Peak memory",
            "Beyond the inputs, gradients included, in MiB.",
            table(weighed, [*SHAPE, *of_each(run, mebibytes, SHOWN), MEMORY]),
        ),
        Chapter(
            "Errors",
            "Largest relative error against float64: loss; gradient of the hidden states; of the "
            "head at the target classes; at the others.",
            table(run.comparisons, [*SHAPE, *of_each(run, errors_of, SHOWN)]),
        ),
        *others,
    ]
    return page(run, folder, [*times(run), *[FASTEST_OTHER] * bool(others), BUDGET], chapters)


def times(run: Run) -> list[Column]:
    return [*SHAPE, OURS_TIME, OVER_PRODUCTS, *times_of_others(run, SHOWN)]


def errors_of(result: LinearResult | None) -> str:
    return errors(result, ERRORS_OF)


def peaks(comparison: LinearComparison) -> str:
    both = f"{mebibytes(comparison.ours)} / {mebibytes(comparison.timed(TORCH))}"
    return both if comparison.memory is None else f"{both} ({ratio(comparison.memory)})"


def products(comparison: LinearComparison) -> str:
    timed = [row for row in (comparison.ours, *comparison.others) if row]
    return microseconds(timed[0].products_us) if timed else "-"


OVER_PRODUCTS = Column("ours / bare products", lambda row: ratio(row.over_products))
PRODUCTS = Column("three bare products", products)
MEMORY = Column(f"ours / `{TORCH}`", lambda row: ratio(row.memory))
