"""The tables of growing problems: an exponent for each provider, and all times."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cases import TITLES
from bench.comparison import Comparison, Run, by_case
from bench.results import LinearResult, LogitsResult
from bench.scaling.cases import (
    LINEAR_SERIES,
    LINEAR_SHAPES,
    LOGITS_SERIES,
    LOGITS_SHAPES,
    Series,
)
from bench.scaling.fit import fit
from bench.tables import (
    OURS_TIME,
    SHAPE,
    WORK,
    Chapter,
    Column,
    lost_of,
    mebibytes,
    of_each,
    page,
    provenance,
    spread,
    table,
    times_of_others,
    title_of,
)


@dataclass(frozen=True)
class Growth:
    """The cases of one series, dtype and work."""

    series: Series
    cases: Sequence[Comparison]

    @property
    def title(self) -> str:
        first, last = (self.series.size(self.cases[place].case.shape) for place in (0, -1))
        case = self.cases[0].case
        return f"{first} to {last} {self.series.grows}, {case.dtype}, {TITLES[case.work]}"

    def times(self, provider: str) -> dict[int, float]:
        """Microseconds by what grows."""
        return {
            self.series.size(case.case.shape): row.median_us
            for case in self.cases
            if (row := case.timed(provider))
        }

    def memory(self, provider: str) -> dict[int, float]:
        """Peak bytes by what grows; nothing where it was not weighed."""
        return {
            self.series.size(case.case.shape): row.peak_bytes
            for case in self.cases
            if (row := case.timed(provider)) and row.peak_bytes
        }


def compare_logits(results: Sequence[LogitsResult]) -> list[Comparison]:
    return [Comparison(rows) for rows in by_case(results, LOGITS_SHAPES).values()]


def compare_heads(results: Sequence[LinearResult]) -> list[Comparison]:
    return [Comparison(rows) for rows in by_case(results, LINEAR_SHAPES).values()]


def growths(comparisons: Sequence[Comparison]) -> list[Growth]:
    """What there is of each series."""
    found = []
    for series in (*LOGITS_SERIES, *LINEAR_SERIES):
        of_series: dict[tuple[str, str], list[Comparison]] = {}
        names = {shape.name for shape in series.shapes}
        for each in comparisons:
            if each.case.shape in names:
                of_series.setdefault((each.case.dtype, each.case.work), []).append(each)
        found += [Growth(series, cases) for cases in of_series.values()]
    return found


def exponents(run: Run) -> str:
    columns = [
        Column("what grows", lambda growth: growth.title, left=True),
        *(
            Column(title_of(name), lambda growth, name=name: str(fit(growth.times(name)) or "-"))
            for name in run.providers
        ),
    ]
    return table(growths(run.comparisons), columns)


def summary(run: Run) -> str:
    """For the project's README: the exponents."""
    return "\n\n".join([provenance(run), exponents(run), lost_of(run.comparisons, "cases")])


def full(run: Run, folder: Path) -> str:
    """Everything measured on one machine; the plots are in `folder`."""
    times = [*SHAPE, WORK, OURS_TIME, *times_of_others(run)]
    weighed = [each for each in run.comparisons if each.ours and each.ours.peak_bytes is not None]
    memory = Chapter(
        "Peak memory",
        "Beyond the inputs, gradients included, in MiB.",
        table(weighed, [*SHAPE, *of_each(run, mebibytes)]),
    )
    chapters = [
        Chapter(
            "Exponents",
            "Time as a power of what grows: the slope of a line through the logarithms, by least "
            "squares, and its standard error.",
            exponents(run),
        ),
        Chapter(
            "Times",
            "In parentheses: the time of another provider / ours.",
            table(run.comparisons, times),
        ),
        *([memory] if weighed else []),
        Chapter(
            "Spread",
            "Interquartile range / median.",
            table(run.comparisons, [*SHAPE, WORK, *of_each(run, spread)]),
        ),
    ]
    return page(run, folder, times, chapters)
