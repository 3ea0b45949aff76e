"""The rows of a result file: one CSV per command, machine and thread count, raw numbers only."""

import csv
import dataclasses
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("bench") / "results"  # of committed files, in a checkout

OK = "ok"
WRONG = "wrong"  # loss or a gradient too far from float64: not timed
FAILED = "failed"  # raised: not timed


@dataclass(frozen=True, kw_only=True)
class Result:
    """One provider at one case. Times are microseconds per call; None: not measured."""

    device: str
    shape: str
    size: str
    dtype: str
    work: str
    option: str
    provider: str
    status: str
    detail: str  # why it is wrong or failed
    median_us: float | None
    q1_us: float | None
    q3_us: float | None
    rounds: int | None
    calls: int | None  # calls averaged in each round
    others_share: float | None  # of the processors, taken by other processes during these rounds
    # Growth of the resident set, or of what is allocated on the device.
    peak_bytes: int | None = None
    loss_error: float | None = None  # largest relative errors against float64, here and below
    machine: str
    threads: str
    isa: str
    torch: str
    python: str
    package: str
    commit: str
    date: str
    command: str
    # Of whatever else takes part, where it is installed. Files written before lack the column.
    packages: str = ""
    clocks: str = ""  # of a GPU, right after the rounds

    @property
    def group(self) -> tuple[str, ...]:
        """What is measured in the same rounds and so replaced as a whole."""
        return (self.device, self.shape, self.dtype, self.work)


@dataclass(frozen=True, kw_only=True)
class LogitsResult(Result):
    """Of given logits."""

    bytes: int  # that the work must move
    copy_us: float | None  # median time of copying the logits in the same rounds
    copy_bytes: int  # moved by that copy
    target_error: float | None = None  # of the gradient at the target entries
    other_error: float | None = None  # elsewhere


@dataclass(frozen=True, kw_only=True)
class LinearResult(Result):
    """Of hidden states and a head."""

    products_us: float | None  # median time of the three bare products in the same rounds
    hidden_error: float | None = None
    head_target_error: float | None = None  # of the head's gradient at the target classes
    head_other_error: float | None = None  # at the others


@dataclass(frozen=True, kw_only=True)
class TrainingResult(Result):
    """Of training steps; `peak_bytes` come on top of `state_bytes`."""

    body_us: float | None  # median time of a step without head and loss, in the same rounds
    memory_limit: int  # bytes
    state_bytes: int | None = None  # of the model and its optimizer, between steps
    largest_batch: int | None = None  # whose step fits the limit: it and the next were measured
    next_loss_error: float | None = None  # of the loss after the step


def columns(kind: type[Result]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


COLUMNS = columns(LogitsResult)


def read(path: Path, kind: type[Result] = LogitsResult) -> list[Result]:
    """The rows of a file, in its order."""
    types = typing.get_type_hints(kind)
    with path.open(newline="") as file:
        return [
            kind(**{name: _parse(types[name], row[name]) for name in columns(kind) if name in row})
            for row in csv.DictReader(file)
        ]


def write(path: Path, results: Iterable[Result], kind: type[Result] = LogitsResult) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")  # a run that is stopped here loses nothing
    with partial.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns(kind))
        for result in results:
            writer.writerow([_format(getattr(result, name)) for name in columns(kind)])
    partial.replace(path)


def merge(path: Path, measured: Sequence[Result], kind: type[Result] = LogitsResult) -> None:
    """Put new rows into a file: they replace the groups that they measured again, as a whole.

    A group where all that was to be timed raised says nothing of what was timed before.
    """
    earlier = read(path, kind) if path.exists() else []
    raised = {row.group for row in measured if row.status == FAILED}
    timed = {row.group for row in measured if row.status == OK}
    kept = {row.group for row in earlier if row.status == OK} & raised - timed
    replaced = {row.group for row in measured} - kept
    rows = [row for row in earlier if row.group not in replaced]
    write(path, rows + [row for row in measured if row.group in replaced], kind)


def file_name(device: str, machine: str, threads: int) -> str:
    """cpu, "AMD EPYC", 2 -> cpu-amd-epyc-2-threads.csv; a GPU's has no threads."""
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    return f"{device}-{slug}{f'-{threads}-threads' if device == 'cpu' else ''}.csv"


def _parse(wanted: type, text: str) -> str | int | float | None:
    if wanted is str:
        return text
    if not text:
        return None
    return int(text) if wanted in (int, int | None) else float(text)


def _format(value: str | int | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
