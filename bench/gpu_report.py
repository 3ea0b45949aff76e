"""One command on a machine with a GPU: build, check, measure, write it down, within a time limit.

The sections are in order of worth: whatever the time does not suffice for is worth least. Each is a
process of its own, and `report.md` is written anew after each.
"""

import importlib.util
import json
import os
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch.utils.cpp_extension import CUDA_HOME

from bench import environment, gpu_peers, report, sections
from bench.cases import PLAIN, WORKS
from bench.comparison import LogitsComparison, time_ratio
from bench.gpu_benchmarks import (
    FURTHER_BENCHMARKS,
    HEADLINES,
    NEXT_BENCHMARKS,
    REHEARSAL,
    Benchmark,
)
from bench.sections import Outcome, Section

ENVIRONMENT, REPORT, LOG = "environment.json", "report.md", "checks.log"
RESULTS = "logits.csv"
PLOT = "bandwidth"  # `python -m bench report --from` draws the others
FILES = (
    *(ENVIRONMENT, REPORT, LOG),
    *sorted({f"{part.file}.csv" for part in report.PARTS}),
    f"logits-{PLOT}.png",
)
PEERS = environment.ROOT / "build" / "peers"  # where the wheels of other kernels are installed

# Seconds, and arguments: calls that PyTorch makes to probe the driver may fail.
SANITIZERS = {"memcheck": (60, ["--report-api-errors", "no"]), "racecheck": (60, [])}
MOST_TEST_PROCESSES = 8  # each has a context of a few hundred MiB on the GPU


FILE_OF = {part.command: part.file for part in report.PARTS}
TESTS = environment.ROOT / "tests"
FIRST_TESTS = TESTS / "test_cuda.py"
REHEARSED_TESTS = ("tests/test_gpu_report.py", "-k", "essential")


def run(
    folder: Path,
    minutes: float,
    device: str,
    peers: Path | None = None,
    chosen: Sequence[str] | None = None,
) -> int:
    """Everything, or the sections chosen, that fits the minutes; returns an exit status."""
    deadline = time.monotonic() + minutes * 60
    known = environment.describe_host()
    if device == "cuda" and "gpu name" not in known:
        print("there is no GPU; --device cpu rehearses without one", file=sys.stderr)
        return 1
    folder = folder.resolve()
    planned = plan(folder, device, known)
    if chosen:
        if unknown := set(chosen) - {section.name for section in planned}:
            names = "; ".join(section.name for section in planned)
            print(f"no section {', '.join(unknown)}. There are: {names}", file=sys.stderr)
            return 1
        planned = [each for each in planned if each.essential or each.name in chosen]
    if peers:
        os.environ["PYTHONPATH"] = gpu_peers.search_path(peers, PEERS)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    (folder / ENVIRONMENT).write_text(json.dumps(known, indent=2) + "\n")

    def after_each(outcomes: Sequence[Outcome]) -> None:
        sections.announce(outcomes[-1])
        try:
            (folder / REPORT).write_text(render(folder, planned, outcomes))
        except Exception:  # the results are on disk, and those to come matter more than tables
            traceback.print_exc()

    outcomes = sections.run_all(planned, folder, deadline, after_each)
    for partial in folder.glob("*.partial"):  # of a section that was stopped while it wrote
        partial.unlink()
    print(f"report in {folder / REPORT}", file=sys.stderr)
    went_wrong = (sections.FAILED, sections.STOPPED)
    return 1 if any(outcome.status in went_wrong for outcome in outcomes) else 0


def plan(folder: Path, device: str, known: dict[str, str]) -> list[Section]:
    """The sections in order of worth."""
    python = [sys.executable, "-m"]
    on_device = ["--device", device]
    smoke = [*python, "bench.smoke", *on_device]
    bandwidth = [*python, "bench.bandwidth", *on_device, "--into", str(folder / ENVIRONMENT)]
    plots = [*python, "bench", "report", "--plots-of", str(folder / RESULTS), "--plots", PLOT]

    def measure(benchmarks: Sequence[Benchmark]) -> list[Section]:
        found = []
        for each in benchmarks:
            command, *arguments = shlex.split(each.arguments)
            into = ["--csv", str(folder / f"{FILE_OF[command]}.csv")]
            whole = [*python, "bench", command, *on_device, *into, *arguments]
            found.append(Section(each.name, whole, each.seconds))
        return found

    if device == "cpu":
        return [
            Section("build", [*python, "torchce_cuda"], 60, LOG, essential=True),
            Section("smoke test", [*smoke, "--few"], 60),
            Section("copy bandwidth", bandwidth, 60),
            *measure(REHEARSAL),
            Section("tests", [*python, "pytest", *REHEARSED_TESTS], 60, LOG),
            *(Section(tool, [], 1, obstacle="it watches a GPU") for tool in SANITIZERS),
            Section("plots", plots, 60),
        ]
    return [
        build(known),
        Section("smoke test", smoke, 45),
        Section("copy bandwidth", bandwidth, 30),
        *measure(HEADLINES),
        gpu_tests(known),
        *measure(NEXT_BENCHMARKS),
        *(sanitizer(tool, [*smoke, "--few"]) for tool in SANITIZERS),
        *measure(FURTHER_BENCHMARKS),
        Section("plots", plots, 20),
    ]


def build(known: dict[str, str]) -> Section:
    """The extension in place, for this GPU alone."""
    # By force: a library that lies there may be newer than the sources and have no kernels.
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    variables = {
        "TORCHCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": known["gpu compute_cap"],
        "MAX_JOBS": known["cores"],
    }
    return Section("build", command, 300, LOG, variables, essential=True)


def gpu_tests(known: dict[str, str]) -> Section:
    """All tests that need a GPU; each has a line in the log, should they be stopped."""
    # First what only a GPU can show. All files, since a folder would take the first one back.
    files = sorted(TESTS.glob("test_*.py"), key=lambda path: (path != FIRST_TESTS, path))
    command = [sys.executable, "-m", "pytest", *map(str, files), "-m", "gpu"]
    # a file that cannot be imported costs its own tests alone
    command += ["--verbose", "--tb=short", "--continue-on-collection-errors"]
    variables = {}
    if importlib.util.find_spec("xdist"):
        processes = min(MOST_TEST_PROCESSES, int(known["cores"]))
        # loadgroup: what needs most of the memory runs in one process
        command += ["-n", str(processes), "--dist", "loadgroup"]
        variables["OMP_NUM_THREADS"] = str(int(known["cores"]) // processes)
    return Section("tests", command, 120, LOG, variables)


def sanitizer(tool: str, command: Sequence[str]) -> Section:
    """compute-sanitizer watches our kernels, not PyTorch's."""
    seconds, arguments = SANITIZERS[tool]
    places = [os.environ.get("PATH", ""), str(Path(CUDA_HOME or "") / "bin")]
    program = shutil.which("compute-sanitizer", path=os.pathsep.join(places))
    watch = ["--tool", tool, "--kernel-name", "kernel_substring=torchce", *arguments]
    return Section(
        tool,
        [program or "", *watch, "--print-limit", "50", "--error-exitcode", "1", *command],
        seconds,
        LOG,
        # Each tensor an allocation of its own, so that a step beyond its end is seen.
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        obstacle="" if program else "no compute-sanitizer on PATH or in CUDA_HOME",
    )


def render(folder: Path, planned: Sequence[Section], outcomes: Sequence[Outcome]) -> str:
    """`report.md` with all that is known so far."""
    known = json.loads((folder / ENVIRONMENT).read_text())
    parts = ["# GPU report", "## Sections", sections_table(planned, outcomes)]
    parts += ["## Environment", facts(known)]
    for part in report.PARTS:
        path = folder / f"{part.file}.csv"
        measured = part.read(path) if path.exists() else None
        if measured and measured.results:
            plots = (PLOT,) if part is report.LOGITS else ()
            shown = replace(measured, plot_names=plots)
            parts += [f"## {part.command.capitalize()}", part.full(shown, Path())]
        if measured and part is report.LOGITS:
            parts += ["#### Odd rows", odd_rows(measured.comparisons) or "None."]
    for section, outcome in zip(planned, outcomes, strict=False):
        if outcome.status in (sections.FAILED, sections.STOPPED):
            whole = f", all of it in {section.log}" if section.log else ""
            parts += [f"## {outcome.name}: end of the output{whole}", f"```\n{outcome.tail}\n```"]
    return "\n\n".join(parts) + "\n"


def sections_table(planned: Sequence[Section], outcomes: Sequence[Outcome]) -> str:
    """What became of each section, and the last line that it wrote."""
    lines = ["| section | | seconds | at most | |", "| :-- | :-- | --: | --: | :-- |"]
    for section, outcome in zip(planned, outcomes, strict=False):
        end = outcome.reason or (outcome.tail.splitlines() or [""])[-1].strip("= ")
        took = f"{outcome.seconds:.0f}" if outcome.status != sections.SKIPPED else ""
        cells = [section.name, outcome.status, took, f"{section.seconds:.0f}", end]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    for section in planned[len(outcomes) :]:
        lines.append(f"| {section.name} | not begun | | {section.seconds:.0f} | |")
    return "\n".join(lines)


def facts(known: dict[str, str | float]) -> str:
    lines = ["| | |", "| :-- | :-- |", *(f"| {name} | {value} |" for name, value in known.items())]
    return "\n".join(lines)


def odd_rows(comparisons: Sequence[LogitsComparison]) -> str:
    """The time of ours for 50257 classes / that for 50264."""
    times = {
        (each.case.shape, each.case.work): each.ours
        for each in comparisons
        if each.case.option == PLAIN
    }
    return "\n".join(
        f"- {title}: {ratio:.3f}x"
        for work, title in WORKS.items()
        if (ratio := time_ratio(times.get(("head-50257", work)), times.get(("head-50264", work))))
    )
