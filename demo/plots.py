"""The pictures of both trainings."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: a display is neither needed nor asked for

import matplotlib.pyplot as plt
import numpy as np

from demo.digits import CLASSES
from demo.language_model import TOLERANCE, Run, differences
from demo.table import digit_title

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
    apart.axhline(TOLERANCE, color="black", linestyle=":", label="allowed")
    apart.set_yscale("symlog", linthresh=1e-6)
    apart.set(xlabel="step", ylabel=f"distance from\n{runs[0].name}", ylim=(0, 10 * TOLERANCE))
    apart.legend(ncols=len(runs), loc="upper left")
    figure.savefig(path)
    plt.close(figure)


def plot_costs(runs: list[Run], path: Path) -> None:
    measured = [(run, f"C{i}") for i, run in enumerate(runs) if run.loss]
    figure, (time, memory) = plt.subplots(1, 2, sharey=True, figsize=(9, 2.8))
    for axes, title, values, unit in (
        (time, "time", [1e3 * run.loss.seconds for run, _ in measured], "ms"),
        (memory, "memory added", [run.loss.bytes / 2**20 for run, _ in measured], "MiB"),
    ):
        names, colors = zip(*((run.name, color) for run, color in measured), strict=True)
        bars = axes.barh(names, values, color=colors)
        axes.bar_label(bars, [f"{value:.0f} {unit}" for value in values], padding=3)
        axes.margins(x=0.2)  # room for the labels
        axes.set(title=f"loss, forward + backward: {title}", xlabel=unit)
    time.invert_yaxis()  # the first on top
    figure.savefig(path)
    plt.close(figure)


def plot_digits(accuracy: dict[str, np.ndarray], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 4))
    width = 0.8 / len(accuracy)
    digits = np.arange(CLASSES)
    for i, (name, per_class) in enumerate(accuracy.items()):
        offset = (i - (len(accuracy) - 1) / 2) * width
        axes.bar(digits + offset, 100 * per_class, width, label=name)
    axes.set_xticks(digits, map(digit_title, digits))
    axes.set(xlabel="digit", ylabel="accuracy on balanced test images, %", ylim=(0, 100))
    figure.legend(loc="outside upper center", ncols=len(accuracy))
    figure.savefig(path)
    plt.close(figure)
