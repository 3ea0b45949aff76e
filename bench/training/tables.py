"""The tables of training steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.comparison import Comparison, Run, by_case
from bench.results import Result, TrainingResult
from bench.tables import (
    OURS_TIME,
    SHAPE,
    Chapter,
    Column,
    errors,
    lost_of,
    mebibytes,
    microseconds,
    of_each,
    page,
    provenance,
    spread,
    table,
    times_of_others,
)
from bench.training.cases import SHAPES
from bench.training.providers import OF_LOGITS

ERRORS_OF = ("loss", "next_loss")


@dataclass(frozen=True)
class TrainingComparison(Comparison):
    """A step of one model; ours of logits does not count among the others."""

    @property
    def others(self) -> list[Result]:
        return [row for row in super().others if row.provider != OF_LOGITS]


def compare(results: Sequence[TrainingResult]) -> list[TrainingComparison]:
    return [TrainingComparison(rows) for rows in by_case(results, SHAPES).values()]


def summary(run: Run) -> str:
    """The tables of the project's README."""
    parts = [provenance(run), "A step:", table(run.comparisons, times(run))]
    if batches := largest_batches(run):
        parts += ["The largest batch whose step fits a memory limit:", batches]
    return "\n\n".join([*parts, lost_of(run.comparisons, "models")])


def full(run: Run, folder: Path) -> str:
    """Everything measured on one machine; plots, if it had any, would be in `folder`."""
    weighed = [each for each in run.comparisons if each.ours and each.ours.peak_bytes is not None]
    chapters = [
        Chapter(
            "Times",
            "Of a whole step: forward, backward, optimizer. In parentheses: the time of another "
            "provider / ours. Last: the same step without head and loss, in the same rounds.",
            table(run.comparisons, [*times(run), BODY]),
        ),
        Chapter(
            "Peak memory",
            "Of a step beyond model and optimizer, gradients included, in MiB.",
            table(weighed, [*SHAPE, *of_each(run, mebibytes), STATE]),
        ),
        Chapter(
            "Largest batch",
            "In sequences: its step, model and optimizer fit the limit, those of the next do not. "
            "Both were measured.",
            largest_batches(run),
        ),
        Chapter(
            "Spread",
            "Interquartile range / median.",
            table(run.comparisons, [*SHAPE, *of_each(run, spread)]),
        ),
        Chapter(
            "Errors",
            "Relative error against a model in float64: the loss; the loss after the step.",
            table(run.comparisons, [*SHAPE, *of_each(run, lambda row: errors(row, ERRORS_OF))]),
        ),
    ]
    return page(run, folder, times(run), chapters)


def times(run: Run) -> list[Column]:
    return [*SHAPE, OURS_TIME, *times_of_others(run)]


def largest_batches(run: Run) -> str:
    searched = [each for each in run.comparisons if each.case.memory_limit]
    return table(searched, [*SHAPE, LIMIT, *of_each(run, largest_batch)])


def largest_batch(result: TrainingResult | None) -> str:
    return "-" if result is None or result.largest_batch is None else str(result.largest_batch)


def body(comparison: Comparison) -> str:
    timed = [row for row in comparison.rows.values() if row.body_us]
    return microseconds(timed[0].body_us) if timed else "-"


BODY = Column("without head and loss", body)
LIMIT = Column("limit, MiB", lambda row: str(row.case.memory_limit >> 20))
STATE = Column(
    "model and optimizer",
    lambda row: "-" if row.ours.state_bytes is None else f"{row.ours.state_bytes / 2**20:.0f}",
)
