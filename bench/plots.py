"""The plots of one machine's results. Each PNG has the digest of its results."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.cases import MODES, OPTIONS, PLAIN, WORKS
from bench.comparison import Comparison, LogitsComparison, share_of_copy
from bench.providers import OURS
from bench.scaling.fit import fit
from bench.scaling.tables import growths

COLORS = ("#4477aa", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#66ccee")
MARKERS = "osv^D*"  # with the colors as many pairs as providers will ever be
GROUP_WIDTH = 0.8  # of the distance between two groups of bars
LEAST_BYTES = 8 << 20  # of logits, for a share of the bandwidth of memory to mean anything


def speedup(comparisons: Sequence[LogitsComparison], path: Path, digest: str) -> None:
    """Bars: time of F.cross_entropy / ours, per shape and work; circles: of it compiled / ours."""
    rows = [each for each in comparisons if each.is_plain and each.speedup is not None]
    groups = _groups(rows)
    works = {each.case.work for each in rows}
    titles = {work: title for work, title in WORKS.items() if work in works}
    height = GROUP_WIDTH / max(1, len(titles))
    figure = Figure(figsize=(8, 0.55 * len(groups) + 1.5), layout="constrained")
    axes = figure.subplots()
    for index, (work, title) in enumerate(titles.items()):
        of_work = {
            groups.index(_group(each)) + _offset(index, height): each
            for each in rows
            if each.case.work == work
        }
        speedups = [each.speedup for each in of_work.values()]
        axes.barh(list(of_work), speedups, height, color=COLORS[index], label=title)
        compiled = {y: each for y, each in of_work.items() if each.compiled}
        axes.plot(
            [each.speedup_over_compiled for each in compiled.values()],
            list(compiled),
            "o",
            color="black",
            markersize=3,
            label=None if index else "over torch.compile",
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.set_xlabel("time of F.cross_entropy / time of torchce_cuda")
    if groups:
        axes.legend(fontsize="small")
    _save(figure, path, digest)


def options(comparisons: Sequence[LogitsComparison], path: Path, digest: str) -> None:
    """Bars: time of ours with an option / plain, forward + backward; dashes: the budget."""
    rows = [
        each
        for each in comparisons
        if each.case.work == "forward_backward" and not each.is_plain and each.cost is not None
    ]
    groups = _groups(rows)
    names = [name for name in OPTIONS if name != PLAIN]
    width = GROUP_WIDTH / max(1, len(groups))
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for index, group in enumerate(groups):
        of_group = {
            names.index(each.case.option) + _offset(index, width): each.cost
            for each in rows
            if _group(each) == group
        }
        color = COLORS[index % len(COLORS)]
        axes.bar(list(of_group), list(of_group.values()), width, color=color, label=group)
    budgets = {each.case.option: each.cost_budget for each in rows}
    for x, name in enumerate(names):
        if budgets.get(name) is not None:
            axes.plot([x - 0.45, x + 0.45], [budgets[name]] * 2, "k--", linewidth=0.8)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(names)), names, rotation=15)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylabel("time / time of the plain loss")
    if groups:
        axes.legend(fontsize="small")
    _save(figure, path, digest)


def bandwidth(comparisons: Sequence[LogitsComparison], path: Path, digest: str) -> None:
    """Share of the copy's bandwidth against classes, a panel for each dtype and work."""
    by_classes: dict[tuple[str, str], dict[int, LogitsComparison]] = {}
    for each in comparisons:
        rows, classes, *positions = map(int, each.case.size.split("x"))
        if not each.is_plain or positions or each.case.copy_bytes < 2 * LEAST_BYTES:
            continue
        panel = by_classes.setdefault((each.case.dtype, each.case.work), {})
        other = panel.get(classes)
        if other is None or rows > int(other.case.size.split("x")[0]):
            panel[classes] = each  # of a vocabulary's shapes the one with most rows
    dtypes = list(dict.fromkeys(dtype for dtype, _ in by_classes))
    works = [work for work in WORKS if any(work == of for _, of in by_classes)]
    figure, panels = _panels(max(1, len(dtypes)), max(1, len(works)))
    for row, dtype in zip(panels, dtypes, strict=False):
        for axes, work in zip(row, works, strict=True):
            cases = by_classes.get((dtype, work), {})
            for index, name in enumerate(_providers(cases.values())):
                shares = {
                    classes: 100 * share_of_copy(result)
                    for classes, case in sorted(cases.items())
                    if (result := case.timed(name)) and result.copy_us
                }
                _line(axes, shares, name, index)
            axes.set_xscale("log", base=2)
            axes.axhline(100, color="black", linewidth=0.8)
            axes.set_ylim(bottom=0)
            axes.set_title(f"{WORKS[work]}, {dtype}", fontsize="small")
            axes.set_xlabel("classes")
            axes.set_ylabel("% of copy bandwidth")
    _legend(panels[0][0])
    _save(figure, path, digest)


def latency(comparisons: Sequence[Comparison], path: Path, digest: str) -> None:
    """Time of small calls, a panel for each mode."""
    plain = [each for each in comparisons if each.case.option == PLAIN]
    modes = [mode for mode in MODES if any(each.case.work == mode for each in plain)]
    figure, panels = _panels(1, max(1, len(modes)))
    for axes, mode in zip(panels[0], modes, strict=False):
        cases = {each.case.size: each for each in plain if each.case.work == mode}
        for index, name in enumerate(_providers(cases.values())):
            timed = {size: case.timed(name) for size, case in cases.items()}
            _line(axes, {size: row.median_us for size, row in timed.items() if row}, name, index)
        copies = {size: case.ours.copy_us for size, case in cases.items() if case.ours}
        axes.plot(list(copies), list(copies.values()), "k:", linewidth=0.8, label="copy")
        axes.set_yscale("log")
        axes.set_title(MODES[mode], fontsize="small")
        axes.tick_params("x", rotation=30, labelsize="small")
        axes.set_ylabel("µs, forward + backward")
    _legend(panels[0][0])
    _save(figure, path, digest)


def growth(comparisons: Sequence[Comparison], path: Path, digest: str) -> None:
    """Time, and peak memory where it was measured, against what grows; both logarithmic."""
    quantities = []
    for each in growths(comparisons):
        names = _providers(each.cases)
        seconds = {name: _scaled(each.times(name), 1e-6) for name in names}
        memory = {name: _scaled(each.memory(name), 2**-20) for name in names}
        quantities.append((each, "seconds", seconds))
        if any(memory.values()):
            quantities.append((each, "peak MiB", memory))
    figure, panels = _panels(max(1, math.ceil(len(quantities) / 2)), 2)
    flat = [axes for row in panels for axes in row]
    for axes, (each, unit, of_provider) in zip(flat, quantities, strict=False):
        for index, (name, values) in enumerate(of_provider.items()):
            exponent = fit(values)
            _line(axes, values, f"{name}: {exponent}" if exponent else name, index)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(each.title, fontsize="small")
        axes.set_xlabel(each.series.grows)
        axes.set_ylabel(unit)
        _legend(axes)
    for axes in flat[len(quantities) :]:
        axes.set_axis_off()
    _save(figure, path, digest)


PLOTS = {
    "speedup": speedup,
    "options": options,
    "bandwidth": bandwidth,
    "latency": latency,
    "growth": growth,
}


def _panels(rows: int, columns: int) -> tuple[Figure, Sequence[Sequence[Axes]]]:
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _line(axes: Axes, values: Mapping, label: str, index: int) -> None:
    """One provider's values; ours stands out."""
    style = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
    width = 2.0 if label.partition(":")[0] == OURS else 1.0
    if values:
        axes.plot(
            list(values), list(values.values()), label=label, linewidth=width, markersize=4, **style
        )


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="x-small")


def _scaled(values: Mapping[int, float], factor: float) -> dict[int, float]:
    return {size: value * factor for size, value in values.items()}


def _providers(cases: Iterable[Comparison]) -> list[str]:
    return list(dict.fromkeys(name for case in cases for name in case.rows))


def _save(figure: Figure, path: Path, digest: str) -> None:
    figure.savefig(path, dpi=110, metadata={"Source": digest})


def _groups(rows: Sequence[LogitsComparison]) -> list[str]:
    return list(dict.fromkeys(_group(each) for each in rows))


def _group(comparison: LogitsComparison) -> str:
    case = comparison.case
    return f"{case.shape} {case.size} {case.dtype}"


def _offset(index: int, width: float) -> float:
    """From the centre of a group to the centre of its bar of this index."""
    return (index + 0.5) * width - GROUP_WIDTH / 2
