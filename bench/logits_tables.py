"""The tables of the loss of given logits."""

from pathlib import Path

from bench.comparison import (
    LogitsComparison,
    Run,
    gigabytes_per_second,
    relative_spread,
    share_of_copy,
)
from bench.providers import COMPILED, OURS, TORCH
from bench.results import FOLDER, LogitsResult
from bench.tables import (
    BUDGET,
    FASTEST_OTHER,
    OPTION,
    OURS_TIME,
    SHAPE,
    SPREAD,
    WORK,
    Chapter,
    Column,
    duration,
    errors,
    everyone_else,
    lost_of,
    of,
    page,
    provenance,
    ratio,
    table,
)

SHOWN = (OURS, TORCH, COMPILED)  # who has columns
ERRORS_OF = ("loss", "target", "other")
PLOT_OF_DEVICE = {  # what matters most there
    "cpu": ("speedup", "Speed-up over F.cross_entropy"),
    "cuda": ("bandwidth", "Share of the copy's bandwidth"),
}


def summary(run: Run) -> str:
    """The table of the project's README: the cases that have a budget of their own."""
    plain = [each for each in run.comparisons if each.is_plain]
    promised = [each for each in plain if each.judged]
    columns = CASE + TIMES + [OF_COPY, Column("peak memory, ours / `F.cross_entropy`", peaks)]
    name, title = PLOT_OF_DEVICE[run.results[0].device]
    return "\n\n".join(
        [
            provenance(run),
            table(promised, columns),
            f"![{title}]({FOLDER / run.plot(name).name})",
            lost_of(plain, "plain cases"),
        ]
    )


def full(run: Run, folder: Path) -> str:
    """Everything measured on one machine; the plots are in `folder`."""
    plain = [each for each in run.comparisons if each.is_plain]
    with_options = [each for each in run.comparisons if not each.is_plain]
    others = everyone_else(run, SHOWN, CASE + [OPTION], ERRORS_OF)
    weighed = [each for each in plain if each.ours and each.ours.peak_bytes is not None]
    chapters = [
        Chapter("Plain loss", "", table(plain, CASE + TIMES + BANDWIDTH + [BUDGET])),
        Chapter(
            "Options",
            "Cost: the time of ours with the option / ours without, in the same rounds.",
            table(with_options, CASE + [OPTION] + TIMES + [COST, SPREAD, BUDGET]),
        ),
        *others,
        Chapter(
            "Peak memory",
            "Beyond the inputs, in MiB and in multiples of the logits.",
            table(weighed, CASE + MEMORY),
        ),
        Chapter(
            "Errors",
            "Largest relative error against float64: loss; gradient at the target; elsewhere.",
            table(plain, CASE + ERRORS),
        ),
    ]
    of_lost = TIMES + [FASTEST_OTHER] * bool(others) + [COST, BUDGET]
    return page(run, folder, CASE + [OPTION] + of_lost, chapters)


def peak(result: LogitsResult | None) -> str:
    """MiB, and multiples of the logits, which the copy reads once and writes once."""
    if result is None or result.peak_bytes is None:
        return "-"
    logits_bytes = result.copy_bytes / 2
    return f"{result.peak_bytes / 2**20:.0f} ({result.peak_bytes / logits_bytes:.2f}x)"


def peaks(comparison: LogitsComparison) -> str:
    return f"{peak(comparison.ours)} / {peak(comparison.torch)}"


CASE = [*SHAPE, WORK]
TIMES = [
    OURS_TIME,
    Column("`F.cross_entropy`", lambda row: duration(row.torch)),
    Column("`torch.compile`", lambda row: duration(row.compiled)),
    Column("speed-up", lambda row: ratio(row.speedup)),
    Column("over compiled", lambda row: ratio(row.speedup_over_compiled)),
]
OF_COPY = Column("of copy", lambda row: of(row.ours, share_of_copy, ".0%"))
BANDWIDTH = [
    Column("GB/s", lambda row: of(row.ours, gigabytes_per_second, ".1f")),
    OF_COPY,
    SPREAD,
    Column("IQR, `F.cross_entropy`", lambda row: of(row.torch, relative_spread, ".0%")),
]
COST = Column("cost", lambda row: "" if row.is_plain else ratio(row.cost))
MEMORY = [
    Column("ours", lambda row: peak(row.ours)),
    Column("`F.cross_entropy`", lambda row: peak(row.torch)),
    Column("`torch.compile`", lambda row: peak(row.compiled)),
]
ERRORS = [
    Column("ours", lambda row: errors(row.ours, ERRORS_OF)),
    Column("`F.cross_entropy`", lambda row: errors(row.torch, ERRORS_OF)),
    Column("`torch.compile`", lambda row: errors(row.compiled, ERRORS_OF)),
]
