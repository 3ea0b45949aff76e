"""Markdown tables of comparisons, and the page that holds everything measured on one machine."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from bench import causes
from bench.cases import TITLES
from bench.comparison import Comparison, Run, relative_spread, time_ratio
from bench.providers import OURS
from bench.results import OK, Result

SUMMARY, FULL = Path("README.md"), Path("bench") / "README.md"  # the documents, in a checkout


Row = TypeVar("Row")  # a comparison, mostly


@dataclass(frozen=True)
class Column(Generic[Row]):
    title: str
    cell: Callable[[Row], str]
    left: bool = False


@dataclass(frozen=True)
class Entry:
    """One other provider at one case, as a row of its own."""

    comparison: Comparison
    result: Result

    @property
    def case(self) -> Result:
        return self.result


@dataclass(frozen=True)
class Chapter:
    """A titled part of a page."""

    title: str
    note: str
    body: str


def page(run: Run, folder: Path, of_lost: Sequence[Column], chapters: Sequence[Chapter]) -> str:
    """Everything measured on one machine, losses first; the plots are in `folder`."""
    lost = [each for each in run.comparisons if each.lost]
    untimed = [row for row in run.results if row.status != OK]
    first = [
        Chapter(
            f"Lost: {len(lost)} of {len(run.comparisons)} cases",
            "Another provider is faster, or a budget is missed.",
            table(lost, [*of_lost, why_lost(run.subject)]),
        ),
        Chapter(
            "Not timed", "The loss or the gradient is wrong, or the call raised.", why(untimed)
        ),
    ]
    parts = [f"### {run.machine}", provenance(run)]
    for each in [*first, *chapters]:
        parts += [f"#### {each.title}", *([each.note] if each.note else []), each.body or "None."]
    parts += [f"![{path.stem}]({folder / path.name})" for path in run.plots]
    return "\n\n".join(parts)


def lost_of(cases: Sequence[Comparison], kind: str) -> str:
    """How many of these cases are lost, for the project's README."""
    return (
        f"In {sum(each.lost for each in cases)} of all {len(cases)} {kind} another provider is "
        f"faster or a budget is missed; [{FULL}]({FULL}) lists them first, then everything else."
    )


def provenance(run: Run) -> str:
    """Where the numbers come from, in a line."""

    def all_of(name: str) -> str:
        return ", ".join(sorted({getattr(row, name) for row in run.results}))

    packages = {row.packages for row in run.results} - {""}
    others = f" Others: {'; '.join(sorted(packages))}." if packages else ""
    shares = [row.others_share for row in run.results if row.others_share is not None]
    quiet = f" Other processes took at most {max(shares):.0%} of the processors." if shares else ""
    return (
        f"{run.machine}, {all_of('isa')}; "
        f"torch {all_of('torch')}, Python {all_of('python')}; "
        f"torchce_cuda {all_of('package')} at commit {all_of('commit')}, {all_of('date')}."
        f"{others}{quiet}"
    )


def everyone_else(
    run: Run, shown: Iterable[str], case: Sequence[Column], errors_of: Sequence[str]
) -> list[Chapter]:
    """Who has no columns elsewhere; no chapter where there is nobody."""
    entries = [
        Entry(comparison, row)
        for comparison in run.comparisons
        for row in comparison.others
        if row.provider not in shown
    ]
    columns = [
        *case,
        Column("provider", lambda row: row.result.provider, left=True),
        Column("time", lambda row: duration(row.result)),
        Column("/ ours", lambda row: ratio(time_ratio(row.result, row.comparison.ours))),
        Column("IQR", lambda row: spread(row.result)),
        Column("peak MiB", lambda row: mebibytes(row.result)),
        Column("errors", lambda row: errors(row.result, errors_of)),
    ]
    return [Chapter("Everyone else", "", table(entries, columns))] if entries else []


def fastest_other(comparison: Comparison) -> str:
    other = comparison.fastest_other
    return f"`{other.provider}` {time_and_ratio(comparison, other.provider)}" if other else "-"


def present(run: Run, shown: Sequence[str] | None) -> list[str]:
    """Those shown that took part, in this order; or all."""
    return run.providers if shown is None else [name for name in shown if name in run.providers]


def table(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> str:
    """A Markdown table; nothing if there are no rows."""
    if not rows:
        return ""
    return "\n".join(
        [
            _line(column.title for column in columns),
            _line(":--" if column.left else "--:" for column in columns),
            *(_line(column.cell(row) for column in columns) for row in rows),
        ]
    )


def why(untimed: Sequence[Result]) -> str:
    """A Markdown table of the reasons; nothing if there are no rows."""
    if not untimed:
        return ""
    lines = [
        "| shape | dtype | work | option | provider | why |",
        "| :-- | :-- | :-- | :-- | :-- | :-- |",
    ]
    for row in untimed:
        reason = f"{row.status}: {row.detail.replace('|', '/')}"
        lines.append(
            _line([row.shape, row.dtype, TITLES[row.work], row.option, f"`{row.provider}`", reason])
        )
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def duration(result: Result | None) -> str:
    """Three digits and a unit."""
    return "-" if result is None else microseconds(result.median_us)


def microseconds(value: float) -> str:
    """Three digits and a unit."""
    for limit, unit in ((1e6, "s"), (1e3, "ms")):
        if value >= limit:
            return f"{_digits(value / limit)} {unit}"
    return f"{_digits(value)} µs"


def time_and_ratio(comparison: Comparison, provider: str) -> str:
    """The time of another provider, and that / ours."""
    other = comparison.timed(provider)
    return f"{duration(other)} ({ratio(time_ratio(other, comparison.ours))})" if other else "-"


def mebibytes(result: Result | None) -> str:
    """Peak memory."""
    if result is None or result.peak_bytes is None:
        return "-"
    return f"{result.peak_bytes / 2**20:.0f}"


def spread(result: Result | None) -> str:
    return of(result, relative_spread, ".0%")


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{_digits(value)}x"


def _digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def of(result: Result | None, quantity: Callable[[Result], float], form: str) -> str:
    return "-" if result is None else format(quantity(result), form)


def errors(result: Result | None, names: Sequence[str]) -> str:
    """The largest errors of these names, where there was something to compare."""
    if result is None:
        return "-"
    values = [getattr(result, f"{name}_error") for name in names]
    return "; ".join(f"{value:.0e}" for value in values if value is not None)


def of_each(
    run: Run, cell: Callable[[Result | None], str], shown: Sequence[str] | None = None
) -> list[Column]:
    """A column for each provider."""
    return [
        Column(title_of(name), lambda row, name=name: cell(row.timed(name)))
        for name in present(run, shown)
    ]


def times_of_others(run: Run, shown: Sequence[str] | None = None) -> list[Column]:
    """In parentheses: the time of another provider / ours."""
    return [
        Column(title_of(name), lambda row, name=name: time_and_ratio(row, name))
        for name in present(run, shown)
        if name != OURS
    ]


def title_of(provider: str) -> str:
    return "ours" if provider == OURS else f"`{provider}`"


def why_lost(subject: str) -> Column:
    return Column("cause; what would fix it", lambda row: causes.explain(subject, row.case), True)


SHAPE = [
    Column("shape", lambda row: row.case.shape, left=True),
    Column("size", lambda row: row.case.size, left=True),
    Column("dtype", lambda row: row.case.dtype, left=True),
]
OURS_TIME = Column("ours", lambda row: duration(row.ours))
SPREAD = Column("IQR, ours", lambda row: spread(row.ours))
FASTEST_OTHER = Column("the fastest other", fastest_other, left=True)
WORK = Column("work", lambda row: TITLES[row.case.work], left=True)
OPTION = Column("option", lambda row: row.case.option, left=True)
BUDGET = Column("budget", lambda row: "; ".join(map(str, row.judged)), left=True)
