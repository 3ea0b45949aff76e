"""The pictures of both trainings."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: a display is neither needed nor asked for

import matplotlib.pyplot as plt
import numpy as np

from demo import table
from demo.digits import CLASSES
from demo.language_model import TOLERANCE, Run, differences

plt.rcParams.update(
    {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "legend.frameon": False,
        "savefig.dpi": 150,
    }
)


def plot_loss_curves(runs: list[Run], path: Path) -> None:
    figure, (curves, apart) = plt.subplots(2, sharex=True, figsize=(7, 6), height_ratios=(2, 1))
    for i, run in enumerate(runs):
        # They lie on one another: the later the thinner, so that all of them can be seen.
        style = {"color": f"C{i}", "label": run.name, "linewidth": 2 * (len(runs) - i) - 1}
        curves.plot(run.losses, **style)
        if i > 0:
            apart.plot(differences(run, runs[0]), **style)
    curves.set(ylabel="training loss", title="The same training with each loss")
    curves.legend()
    allowed = apart.axhline(TOLERANCE, color="black", linestyle=":", label="allowed")
    apart.set_yscale("symlog", linthresh=1e-6)
    apart.set(xlabel="step", ylabel=f"distance from\n{runs[0].name}", ylim=(0, 10 * TOLERANCE))
    apart.legend(handles=[allowed], loc="upper left")  # the others are named above
    figure.savefig(path)
    plt.close(figure)


def plot_costs(runs: list[Run], path: Path) -> None:
    figure, grid = plt.subplots(2, 2, sharex="col", sharey=True, figsize=(9, 5))
    for (time, memory), part, costs in (
        (grid[0], "loss, forward + backward", [run.loss for run in runs]),
        (grid[1], "output layer + loss", [run.head for run in runs]),
    ):
        plot_bars(
            time,
            runs,
            [1e3 * cost.seconds if cost else 0 for cost in costs],
            [table.time(cost, costs[0]) for cost in costs],
        )
        plot_bars(
            memory,
            runs,
            [cost.bytes / 2**20 if cost else 0 for cost in costs],
            [table.memory(cost) for cost in costs],
        )
        time.set(title=f"{part}: time")
        memory.set(title="memory added")
    grid[0, 0].invert_yaxis()  # the first on top; the axes share it
    grid[1, 0].set(xlabel="ms")
    grid[1, 1].set(xlabel="MiB")
    figure.savefig(path)
    plt.close(figure)


def plot_bars(axes: plt.Axes, runs: list[Run], values: list[float], labels: list[str]) -> None:
    colors = [f"C{i}" for i in range(len(runs))]
    bars = axes.barh([run.name for run in runs], values, color=colors)
    axes.bar_label(bars, labels, padding=3)
    axes.margins(x=0.55)  # room for the labels


def plot_digits(accuracy: dict[str, np.ndarray], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 4))
    width = 0.8 / len(accuracy)
    digits = np.arange(CLASSES)
    for i, (name, per_class) in enumerate(accuracy.items()):
        offset = (i - (len(accuracy) - 1) / 2) * width
        axes.bar(digits + offset, 100 * per_class, width, label=name)
    axes.set_xticks(digits, map(table.digit_title, digits))
    axes.set(xlabel="digit", ylabel="accuracy on balanced test images, %", ylim=(0, 100))
    figure.legend(loc="outside upper center", ncols=len(accuracy))
    figure.savefig(path)
    plt.close(figure)
