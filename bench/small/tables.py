"""The tables of small calls."""

from collections.abc import Sequence
from pathlib import Path

from bench.cases import MODES
from bench.comparison import Comparison, Run, by_case
from bench.results import FOLDER, LogitsResult
from bench.small.cases import SHAPES
from bench.tables import (
    OPTION,
    OURS_TIME,
    SHAPE,
    WORK,
    Chapter,
    Column,
    lost_of,
    microseconds,
    of_each,
    page,
    provenance,
    spread,
    table,
    times_of_others,
)


def compare(results: Sequence[LogitsResult]) -> list[Comparison]:
    return [Comparison(rows) for rows in by_case(results, SHAPES).values()]


def summary(run: Run) -> str:
    """For the project's README: the plot says it shorter than a table."""
    plot = f"![Latency of small calls]({FOLDER / run.plot('latency').name})"
    return "\n\n".join([provenance(run), plot, lost_of(run.comparisons, "small calls")])


def full(run: Run, folder: Path) -> str:
    """Everything measured on one machine; the plots are in `folder`."""
    chapters = [
        Chapter(
            title.capitalize(),
            "In parentheses: the time of another provider / ours. The copy is one of the logits, "
            "in the same rounds: what a call of PyTorch costs at least.",
            table(cases, [*CASE, *times_of_others(run), COPY]),
        )
        for mode, title in MODES.items()
        if (cases := [each for each in run.comparisons if each.case.work == mode])
    ]
    spreads = table(run.comparisons, [SIZE, WORK, OPTION, *of_each(run, spread)])
    chapters.append(Chapter("Spread", "Interquartile range / median.", spreads))
    return page(run, folder, [SIZE, WORK, OPTION, OURS_TIME, *times_of_others(run)], chapters)


def copy(comparison: Comparison) -> str:
    timed = [row for row in (comparison.ours, *comparison.others) if row]
    return microseconds(timed[0].copy_us) if timed else "-"


SIZE = SHAPE[0]  # they are named by their sizes
CASE = [SIZE, OPTION, OURS_TIME]
COPY = Column("copy", copy)
