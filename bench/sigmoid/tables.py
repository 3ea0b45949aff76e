"""The tables of sigmoid losses."""

from pathlib import Path

from bench.comparison import Run, gigabytes_per_second, share_of_copy
from bench.providers import COMPILED, OURS
from bench.results import LogitsResult
from bench.sigmoid.providers import COMPILED_TORCHVISION, TORCH, TORCHVISION
from bench.tables import (
    FASTEST_OTHER,
    OPTION,
    OURS_TIME,
    SHAPE,
    SPREAD,
    WORK,
    Chapter,
    Column,
    errors,
    everyone_else,
    lost_of,
    mebibytes,
    of,
    of_each,
    page,
    provenance,
    table,
    times_of_others,
)

SHOWN = (OURS, TORCH, COMPILED, TORCHVISION, COMPILED_TORCHVISION)  # who has columns
ERRORS_OF = ("loss", "target", "other")


def summary(run: Run) -> str:
    """The table of the project's README: what trains."""
    trained = [each for each in run.comparisons if each.case.work == "forward_backward"]
    return "\n\n".join(
        [provenance(run), table(trained, times(run)), lost_of(run.comparisons, "cases")]
    )


def full(run: Run, folder: Path) -> str:
    """Everything measured on one machine; plots, if it had any, would be in `folder`."""
    weighed = [each for each in run.comparisons if each.ours and each.ours.peak_bytes is not None]
    chapters = [
        Chapter(
            "Times",
            "In parentheses: the time of another provider / ours.",
            table(run.comparisons, [*times(run), *BANDWIDTH]),
        ),
        Chapter(
            "Peak memory",
            "Beyond the inputs, in MiB.",
            table(weighed, [*CASE, *of_each(run, mebibytes, SHOWN)]),
        ),
        Chapter(
            "Errors",
            "Largest relative error against float64: loss; gradient where the label is yes; where "
            "it is no.",
            table(run.comparisons, [*CASE, *of_each(run, errors_of, SHOWN)]),
        ),
        *everyone_else(run, SHOWN, CASE, ERRORS_OF),
    ]
    return page(run, folder, [*times(run), FASTEST_OTHER], chapters)


def times(run: Run) -> list[Column]:
    return [*CASE, OURS_TIME, *times_of_others(run, SHOWN)]


def errors_of(result: LogitsResult | None) -> str:
    return errors(result, ERRORS_OF)


CASE = [*SHAPE, WORK, OPTION]
BANDWIDTH = [
    Column("GB/s", lambda row: of(row.ours, gigabytes_per_second, ".1f")),
    Column("of copy", lambda row: of(row.ours, share_of_copy, ".0%")),
    SPREAD,
]
