"""The plots of one machine's times for given logits. Each PNG has the digest of its results."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from bench.cases import OPTIONS, PLAIN, WORKS
from bench.comparison import LogitsComparison

COLORS = ("#4477aa", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#66ccee")
GROUP_WIDTH = 0.8  # of the distance between two groups of bars


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
    figure.savefig(path, dpi=110, metadata={"Source": digest})


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
    figure.savefig(path, dpi=110, metadata={"Source": digest})


PLOTS = {"speedup": speedup, "options": options}


def _groups(rows: Sequence[LogitsComparison]) -> list[str]:
    return list(dict.fromkeys(_group(each) for each in rows))


def _group(comparison: LogitsComparison) -> str:
    case = comparison.case
    return f"{case.shape} {case.size} {case.dtype}"


def _offset(index: int, width: float) -> float:
    """From the centre of a group to the centre of its bar of this index."""
    return (index + 0.5) * width - GROUP_WIDTH / 2
