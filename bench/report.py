"""From result files to the tables in the READMEs and the plots: nobody types a number."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import results
from bench.cases import WORKS
from bench.comparison import (
    Comparison,
    compare,
    gigabytes_per_second,
    relative_spread,
    share_of_copy,
    time_ratio,
)
from bench.results import Result

BEGIN = "<!-- bench:cpu begin -->"
END = "<!-- bench:cpu end -->"
RESULTS = Path("bench") / "results"
SUMMARY = Path("README.md")
FULL = Path("bench") / "README.md"


@dataclass(frozen=True)
class Run:
    """The results of one machine."""

    path: Path
    results: Sequence[Result]
    comparisons: Sequence[Comparison]

    @property
    def digest(self) -> str:
        """Of the file: a plot carries that of the results that it shows."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def plots(self) -> tuple[Path, ...]:
        """Files of the speed-up plot and of the option plot."""
        stem = self.path.stem
        names = (f"{stem}-speedup.png", f"{stem}-options.png")
        return tuple(self.path.with_name(name) for name in names)


def load(root: Path) -> list[Run]:
    """Every committed CPU result under a checkout."""
    runs = []
    for path in sorted((root / RESULTS).glob("cpu-*.csv")):
        runs.append(read(path))
    return runs


def read(path: Path) -> Run:
    rows = results.read(path)
    return Run(path, rows, compare(rows))


def draw(run: Run) -> list[Path]:
    """Draw the plots that do not show the results; returns them."""
    from bench import plots

    drawn = [path for path in run.plots if not _shows(path, run)]
    for path, plot in zip(run.plots, (plots.speedup, plots.options), strict=True):
        if path in drawn:
            plot(run.comparisons, path, run.digest)
    return drawn


def write(root: Path) -> list[Path]:
    """Render tables and plots; returns the files that changed."""
    changed = [path for run in load(root) for path in draw(run)]
    for path, text in _documents(root).items():
        if path.read_text() != text:
            path.write_text(text)
            changed.append(path)
    return changed


def stale(root: Path) -> list[Path]:
    """Files that do not show the committed results."""
    wrong_plots = [path for run in load(root) for path in run.plots if not _shows(path, run)]
    wrong_texts = [path for path, text in _documents(root).items() if path.read_text() != text]
    return wrong_plots + wrong_texts


def replace_between_markers(path: Path, body: str) -> str:
    """The text of a file with everything between the two markers replaced."""
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path.name}: expected {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{body}\n{END}{after}"


def _documents(root: Path) -> dict[Path, str]:
    """What the documents should say."""
    runs = load(root)
    bodies = {
        SUMMARY: "\n\n".join(summary(run) for run in runs),
        FULL: "\n\n".join(full(run) for run in runs),
    }
    return {
        root / path: replace_between_markers(root / path, body) for path, body in bodies.items()
    }


def _shows(plot: Path, run: Run) -> bool:
    return plot.exists() and run.digest.encode() in plot.read_bytes()


def summary(run: Run) -> str:
    """The table of the project's README: the cases that have a speed budget."""
    promised = [each for each in run.comparisons if each.speedup_budget is not None]
    plain = [each for each in run.comparisons if each.is_plain]
    lost = sum(each.lost for each in plain)
    return "\n\n".join(
        [
            provenance(run),
            table(
                promised, CASE + TIMES + [Column("peak memory, ours / `F.cross_entropy`", peaks)]
            ),
            f"![Speed-up over F.cross_entropy]({RESULTS / run.plots[0].name})",
            f"In {lost} of all {len(plain)} plain cases another provider is faster or a budget is "
            f"missed; [bench/README.md]({FULL}) lists them first, then everything else.",
        ]
    )


def full(run: Run, folder: Path = Path(RESULTS.name)) -> str:
    """Everything measured on one machine, losses first; the plots are in `folder`."""
    plain = [each for each in run.comparisons if each.is_plain]
    with_options = [each for each in run.comparisons if not each.is_plain]
    lost = [each for each in run.comparisons if each.lost]
    untimed = [each for each in run.results if each.status != results.OK]
    with_peers = [each for each in run.comparisons if each.peers]
    others = [("Other kernels", "", table(with_peers, CASE + [OPTION, OURS_TIME, PEERS]))]
    weighed = [each for each in plain if each.ours and each.ours.peak_bytes is not None]
    sections = [
        (
            f"Lost: {len(lost)} of {len(run.comparisons)} cases",
            "Another provider is faster, or a budget is missed.",
            table(lost, CASE + [OPTION] + TIMES + [COST, BUDGET]),
        ),
        (
            "Not timed",
            "The loss or the gradient is wrong, or the call raised.",
            untimed_table(untimed),
        ),
        ("Plain loss", "", table(plain, CASE + TIMES + BANDWIDTH + [BUDGET])),
        (
            "Options",
            "Cost: the time of ours with the option / ours without, in the same rounds.",
            table(with_options, CASE + [OPTION] + TIMES + [COST, SPREAD, BUDGET]),
        ),
        *(others if with_peers else []),
        (
            "Peak memory",
            "Beyond the inputs, in MiB and in multiples of the logits.",
            table(weighed, CASE + MEMORY),
        ),
        (
            "Errors",
            "Largest relative error against float64: loss; gradient at the target; elsewhere.",
            table(plain, CASE + ERRORS),
        ),
    ]
    parts = [f"### {run.results[0].machine}, {run.results[0].threads} threads", provenance(run)]
    for title, note, body in sections:
        parts += [f"#### {title}", *([note] if note else []), body or "None."]
    parts += [f"![{path.stem}]({folder / path.name})" for path in run.plots]
    return "\n\n".join(parts)


def provenance(run: Run) -> str:
    """Where the numbers come from, in a line."""

    def all_of(name: str) -> str:
        return ", ".join(sorted({getattr(row, name) for row in run.results}))

    shares = [row.others_share for row in run.results if row.others_share is not None]
    quiet = f" Other processes took at most {max(shares):.0%} of the processors." if shares else ""
    return (
        f"{all_of('machine')}, {all_of('threads')} threads, {all_of('isa')}; "
        f"torch {all_of('torch')}, Python {all_of('python')}; "
        f"torchce_cuda {all_of('package')} at commit {all_of('commit')}, {all_of('date')}.{quiet}"
    )


@dataclass(frozen=True)
class Column:
    title: str
    cell: Callable[[Comparison], str]
    left: bool = False


def table(rows: Sequence[Comparison], columns: Sequence[Column]) -> str:
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


def untimed_table(rows: Sequence[Result]) -> str:
    if not rows:
        return ""
    lines = [
        "| shape | dtype | work | option | provider | why |",
        "| :-- | :-- | :-- | :-- | :-- | :-- |",
    ]
    for row in rows:
        why = f"{row.status}: {row.detail.replace('|', '/')}"
        lines.append(
            _line([row.shape, row.dtype, WORKS[row.work], row.option, f"`{row.provider}`", why])
        )
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def duration(result: Result | None) -> str:
    """Three digits and a unit."""
    if result is None:
        return "-"
    for limit, unit in ((1e6, "s"), (1e3, "ms")):
        if result.median_us >= limit:
            return f"{_digits(result.median_us / limit)} {unit}"
    return f"{_digits(result.median_us)} µs"


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{_digits(value)}x"


def _digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def of(result: Result | None, quantity: Callable[[Result], float], form: str) -> str:
    return "-" if result is None else format(quantity(result), form)


def budget(comparison: Comparison) -> str:
    """The promise and whether it is kept."""
    if comparison.met is None:
        return ""
    if comparison.speedup_budget is not None:
        promise = f"≥ {comparison.speedup_budget:g}x"
    elif comparison.copy_budget is not None:
        promise = f"≥ {comparison.copy_budget:.0%} of copy"
    else:
        promise = f"cost ≤ {comparison.cost_budget:g}x"
    return f"{promise}: {'met' if comparison.met else '**not met**'}"


def peak(result: Result | None) -> str:
    """MiB, and multiples of the logits, which the copy reads once and writes once."""
    if result is None or result.peak_bytes is None:
        return "-"
    logits_bytes = result.copy_bytes / 2
    return f"{result.peak_bytes / 2**20:.0f} ({result.peak_bytes / logits_bytes:.2f}x)"


def peaks(comparison: Comparison) -> str:
    return f"{peak(comparison.ours)} / {peak(comparison.torch)}"


def peers(comparison: Comparison) -> str:
    return "; ".join(
        f"{peer.provider} {duration(peer)} ({ratio(time_ratio(peer, comparison.ours))})"
        for peer in comparison.peers
    )


def errors(result: Result | None) -> str:
    if result is None:
        return "-"
    values = (result.loss_error, result.target_error, result.other_error)
    return "; ".join(f"{value:.0e}" for value in values if value is not None)


CASE = [
    Column("shape", lambda row: row.case.shape, left=True),
    Column("size", lambda row: row.case.size, left=True),
    Column("dtype", lambda row: row.case.dtype, left=True),
    Column("work", lambda row: WORKS[row.case.work], left=True),
]
OPTION = Column("option", lambda row: row.case.option, left=True)
OURS_TIME = Column("ours", lambda row: duration(row.ours))
PEERS = Column("the others, and their time / ours", peers, left=True)
TIMES = [
    OURS_TIME,
    Column("`F.cross_entropy`", lambda row: duration(row.torch)),
    Column("`torch.compile`", lambda row: duration(row.compiled)),
    Column("speed-up", lambda row: ratio(row.speedup)),
    Column("over compiled", lambda row: ratio(row.speedup_over_compiled)),
]
SPREAD = Column("IQR, ours", lambda row: of(row.ours, relative_spread, ".0%"))
BANDWIDTH = [
    Column("GB/s", lambda row: of(row.ours, gigabytes_per_second, ".1f")),
    Column("of copy", lambda row: of(row.ours, share_of_copy, ".0%")),
    SPREAD,
    Column("IQR, `F.cross_entropy`", lambda row: of(row.torch, relative_spread, ".0%")),
]
COST = Column("cost", lambda row: "" if row.is_plain else ratio(row.cost))
BUDGET = Column("budget", budget, left=True)
MEMORY = [
    Column("ours", lambda row: peak(row.ours)),
    Column("`F.cross_entropy`", lambda row: peak(row.torch)),
    Column("`torch.compile`", lambda row: peak(row.compiled)),
]
ERRORS = [
    Column("ours", lambda row: errors(row.ours)),
    Column("`F.cross_entropy`", lambda row: errors(row.torch)),
    Column("`torch.compile`", lambda row: errors(row.compiled)),
]
