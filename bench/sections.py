"""Parts of a report, each a process of its own: a crash or a hang costs its own part alone."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from bench.environment import ROOT

DONE, FAILED, STOPPED, SKIPPED = "done", "failed", "stopped", "skipped"
GRACE_SECONDS = 5.0  # between asking a section to end and ending it: pytest sums up in it
TAIL_LINES = 30
MOST_LOG_BYTES = 8 << 20


@dataclass(frozen=True)
class Section:
    """A command, the most seconds that it may take, and where its output is kept."""

    name: str
    command: Sequence[str]
    seconds: float  # the section is not begun with less left, and stopped when it takes longer
    log: str | None = None  # a file in the report's folder; None: only the last lines are kept
    variables: Mapping[str, str] = field(default_factory=dict)  # of its environment
    essential: bool = False  # nothing that follows makes sense without it
    obstacle: str = ""  # why it cannot run here


@dataclass(frozen=True)
class Outcome:
    """What became of a section; `tail` is the end of its output."""

    name: str
    status: str
    seconds: float = 0.0
    reason: str = ""
    tail: str = ""


def run_all(
    sections: Sequence[Section],
    folder: Path,
    deadline: float,
    after_each: Callable[[Sequence[Outcome]], None],
) -> list[Outcome]:
    """Run sections in order until `deadline`, in seconds of `time.monotonic`."""
    outcomes: list[Outcome] = []
    broken = ""
    for section in sections:
        left = deadline - time.monotonic()
        reason = section.obstacle or broken
        if not reason and left < section.seconds:
            reason = f"{max(0, left):.0f} s left, it may take {section.seconds:.0f} s"
        outcome = Outcome(section.name, SKIPPED, reason=reason) if reason else run(section, folder)
        if section.essential and outcome.status != DONE:
            broken = broken or f"needs {section.name}: {outcome.status}"
        outcomes.append(outcome)
        after_each(outcomes)
    return outcomes


def run(section: Section, folder: Path) -> Outcome:
    """Run one section within its time."""
    started = time.monotonic()
    with _output(section, folder) as file:
        begin = file.seek(0, os.SEEK_END)
        status, reason = _wait(section, file)
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    return Outcome(
        section.name, status, time.monotonic() - started, reason, "\n".join(lines[-TAIL_LINES:])
    )


def _wait(section: Section, file: BinaryIO) -> tuple[str, str]:
    """Status and reason of a section whose output goes to `file`."""
    process = subprocess.Popen(
        section.command,
        stdout=file,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **section.variables},
        cwd=ROOT,
        start_new_session=True,  # its children end with it
        preexec_fn=_heed_interrupts,
    )
    try:
        code = process.wait(section.seconds - GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        return STOPPED, f"took its {section.seconds:.0f} s"
    finally:
        _end(process)
    return (DONE, "") if code == 0 else (FAILED, f"exit status {code}")


def _heed_interrupts() -> None:
    """A shell's background job ignores SIGINT, and so would whatever it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a process that a driver holds may never end
        process.wait(1)


@contextmanager
def _output(section: Section, folder: Path) -> Iterator[BinaryIO]:
    """What a section writes to; a log that grew too large is cut to its end afterwards."""
    if section.log is None:
        with tempfile.TemporaryFile() as file:
            yield file
        return
    path = folder / section.log
    with path.open("a+b") as file:
        yield file
    if path.stat().st_size > MOST_LOG_BYTES:
        path.write_bytes(path.read_bytes()[-MOST_LOG_BYTES:])


def announce(outcome: Outcome) -> None:
    """One line on the console, and the end of the output of what went wrong."""
    end = outcome.reason or (outcome.tail.splitlines() or [""])[-1]
    print(f"{outcome.name}: {outcome.status}, {outcome.seconds:.0f} s. {end}", file=sys.stderr)
    if outcome.status in (FAILED, STOPPED):
        print(outcome.tail, file=sys.stderr)
    sys.stderr.flush()
