"""What the trainings gave, as tables that read the same in a terminal and as Markdown."""

from collections.abc import Callable

import numpy as np

from demo.digits import CLASSES, RARE
from demo.language_model import Run, differences
from demo.meter import Cost


def language_model_table(runs: list[Run]) -> str:
    reference = runs[0]
    apart = [differences(run, reference).max() for run in runs]
    return align(
        [
            ["", *(run.name for run in runs)],
            ["loss, forward + backward", *(time(run.loss, reference.loss) for run in runs)],
            ["memory it adds", *(memory(run.loss) for run in runs)],
            ["output layer + loss", *(time(run.head, reference.head) for run in runs)],
            ["memory they add", *(memory(run.head) for run in runs)],
            ["whole training step", *(time(run.step, reference.step) for run in runs)],
            ["memory of the process", *(memory(run.step) for run in runs)],
            ["last training loss", *(f"{run.losses[-1]:.5f}" for run in runs)],
            ["loss of held-out text", *(f"{run.held_out_loss:.5f}" for run in runs)],
            ["curves differ at most by", *(f"{difference:.1e}" for difference in apart)],
        ]
    )


def time(cost: Cost | None, reference: Cost | None) -> str:
    if cost is None or reference is None:
        return "-"
    return f"{1e3 * cost.seconds:.1f} ms ({reference.seconds / cost.seconds:.2f} x)"


def memory(cost: Cost | None) -> str:
    return "-" if cost is None else f"{cost.bytes / 2**20:.0f} MiB"


def digits_table(accuracy: dict[str, np.ndarray]) -> str:
    def row(title: str, of: Callable[[np.ndarray], float]) -> list[str]:
        return [title, *(f"{100 * of(per_class):.1f} %" for per_class in accuracy.values())]

    return align(
        [
            ["accuracy", *accuracy],
            *(row(digit_title(digit), lambda a, digit=digit: a[digit]) for digit in range(CLASSES)),
            row("the rare ones", lambda a: a[list(RARE)].mean()),
            row("the others", lambda a: np.delete(a, RARE).mean()),
            row("all", lambda a: a.mean()),
        ]
    )


def digit_title(digit: int) -> str:
    return f"{digit} (rare)" if digit in RARE else str(digit)


def align(rows: list[list[str]]) -> str:
    """A Markdown table with its columns aligned, the first row its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in [rows[0], rule, *rows[1:]]
    )
