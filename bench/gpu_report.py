"""One command on a machine with a GPU: build, check, measure, write it down, within a time limit.

The sections are in order of worth: whatever the time does not suffice for is worth least. Each is a
process of its own, and `report.md` is written anew after each.
"""

import importlib.util
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from torch.utils.cpp_extension import CUDA_HOME

from bench import environment, report, sections
from bench.cases import PLAIN, WORKS
from bench.comparison import LogitsComparison, time_ratio
from bench.sections import Outcome, Section

ENVIRONMENT, RESULTS, LINEAR_RESULTS = "environment.json", "logits.csv", "linear.csv"
REPORT, LOG, SANITIZER_LOG = "report.md", "build-and-tests.log", "sanitizer.log"
PLOTS = ("logits-speedup.png", "logits-options.png")
FILES = (ENVIRONMENT, RESULTS, LINEAR_RESULTS, REPORT, LOG, SANITIZER_LOG, *PLOTS)

# Seconds, and arguments: calls that PyTorch makes to probe the driver may fail.
SANITIZERS = {"memcheck": (60, ["--report-api-errors", "no"]), "racecheck": (60, [])}
MOST_TEST_PROCESSES = 8  # each has a context of a few hundred MiB on the GPU

# Name, seconds at most, arguments of `python -m bench logits`; of `python -m bench linear` below.
PASSES = "--works forward backward one_pass"
HEADLINES = (
    ("forward", 50, "--shapes head-128256 --dtypes bfloat16 --works forward"),
    ("backward", 55, "--shapes head-128256 --dtypes bfloat16 --works backward forward_backward"),
    ("one pass", 50, "--shapes head-128256 --dtypes bfloat16 --works one_pass"),
)
FURTHER_BENCHMARKS = (
    (
        "odd, short and long rows",
        75,
        f"--shapes head-50257 head-50264 head-1000 head-256000 --dtypes bfloat16 {PASSES}",
    ),
    (
        "options",
        40,
        "--shapes llama2-batch --dtypes bfloat16 --providers torchce_cuda F.cross_entropy "
        "--options plain focal weight smoothing z-loss softcap focal+smoothing all",
    ),
    (
        "other vocabularies",
        60,
        f"--shapes head-32000 head-151936 head-4096 --dtypes bfloat16 {PASSES}",
    ),
    (
        "float32 and float16",
        50,
        f"--shapes head-128256 llama2-batch --dtypes float32 float16 --options plain {PASSES}",
    ),
    (
        "float32, other vocabularies",
        60,
        "--shapes head-1000 head-4096 head-50257 head-256000 --dtypes float32 --options plain "
        f"--providers torchce_cuda {PASSES}",
    ),
    (
        "options, a large vocabulary",
        40,
        "--shapes head-128256 --dtypes bfloat16 --providers torchce_cuda "
        "--options plain focal smoothing softcap focal+smoothing",
    ),
    (
        "segmentation, small shapes",
        60,
        "--shapes segmentation small imagenet-batch --options plain",
    ),
)
LINEAR_BENCHMARKS = (
    ("linear", 90, "--shapes llama3-8b"),
    ("linear, other heads", 90, "--shapes qwen gemma2-2b gpt2"),
)
REHEARSED_TESTS = ("tests/test_gpu_report.py", "-k", "essential")
REHEARSAL = (
    (
        "forward",
        60,
        "--shapes small --providers torchce_cuda F.cross_entropy --options plain focal "
        "--works forward forward_backward",
    ),
)
REHEARSED_LINEAR = (("linear", 60, "--shapes small --providers torchce_cuda"),)


def run(folder: Path, minutes: float, device: str) -> int:
    """Everything that fits the minutes; returns an exit status."""
    deadline = time.monotonic() + minutes * 60
    known = environment.describe_host()
    if device == "cuda" and "gpu name" not in known:
        print("nvidia-smi finds no GPU; --device cpu rehearses without one", file=sys.stderr)
        return 1
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    (folder / ENVIRONMENT).write_text(json.dumps(known, indent=2) + "\n")
    planned = plan(folder, device, known)

    def after_each(outcomes: Sequence[Outcome]) -> None:
        sections.announce(outcomes[-1])
        try:
            (folder / REPORT).write_text(render(folder, planned, outcomes))
        except Exception:  # the results are on disk, and those to come matter more than tables
            traceback.print_exc()

    outcomes = sections.run_all(planned, folder, deadline, after_each)
    print(f"report in {folder / REPORT}", file=sys.stderr)
    went_wrong = (sections.FAILED, sections.STOPPED)
    return 1 if any(outcome.status in went_wrong for outcome in outcomes) else 0


def plan(folder: Path, device: str, known: dict[str, str]) -> list[Section]:
    """The sections in order of worth."""
    python = [sys.executable, "-m"]
    on_device = ["--device", device]
    smoke = [*python, "bench.smoke", *on_device]
    bandwidth = [*python, "bench.bandwidth", *on_device, "--into", str(folder / ENVIRONMENT)]
    plots = [*python, "bench", "report", "--plots-of", str(folder / RESULTS)]

    def benchmarks(
        table: Sequence[tuple[str, int, str]], command: str = "logits", into: str = RESULTS
    ) -> list[Section]:
        measure = [*python, "bench", command, *on_device, "--csv", str(folder / into)]
        return [
            Section(name, [*measure, *arguments.split()], seconds)
            for name, seconds, arguments in table
        ]

    def linear_benchmarks(table: Sequence[tuple[str, int, str]]) -> list[Section]:
        return benchmarks(table, "linear", LINEAR_RESULTS)

    if device == "cpu":
        return [
            Section("build", [*python, "torchce_cuda"], 60, LOG, essential=True),
            Section("smoke test", [*smoke, "--few"], 60, essential=True),
            Section("copy bandwidth", bandwidth, 60),
            *benchmarks(REHEARSAL),
            *linear_benchmarks(REHEARSED_LINEAR),
            Section("tests", [*python, "pytest", *REHEARSED_TESTS], 60, LOG),
            *(Section(tool, [], 1, obstacle="it watches a GPU") for tool in SANITIZERS),
            Section("plots", plots, 60),
        ]
    return [
        build(known),
        Section("smoke test", smoke, 45, essential=True),
        Section("copy bandwidth", bandwidth, 30),
        *benchmarks(HEADLINES),
        gpu_tests(known),
        *(sanitizer(tool, [*smoke, "--few"]) for tool in SANITIZERS),
        *benchmarks(FURTHER_BENCHMARKS),
        *linear_benchmarks(LINEAR_BENCHMARKS),
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
    return Section("build", command, 180, LOG, variables, essential=True)


def gpu_tests(known: dict[str, str]) -> Section:
    """All tests that need a GPU; each has a line in the log, should they be stopped."""
    command = [sys.executable, "-m", "pytest", "tests", "-m", "gpu", "--verbose", "--tb=short"]
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
        SANITIZER_LOG,
        # Each tensor an allocation of its own, so that a step beyond its end is seen.
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        obstacle="" if program else "no compute-sanitizer on PATH or in CUDA_HOME",
    )


def render(folder: Path, planned: Sequence[Section], outcomes: Sequence[Outcome]) -> str:
    """`report.md` with all that is known so far."""
    known = json.loads((folder / ENVIRONMENT).read_text())
    parts = ["# GPU report", "## Sections", sections_table(planned, outcomes)]
    parts += ["## Environment", facts(known)]
    if (folder / RESULTS).exists():
        measured = report.LOGITS.read(folder / RESULTS)
        parts += ["## Logits", report.LOGITS.full(measured, Path())]
        parts += ["#### Odd rows", odd_rows(measured.comparisons) or "None."]
    if (folder / LINEAR_RESULTS).exists():
        measured = report.LINEAR.read(folder / LINEAR_RESULTS)
        parts += ["## Linear", report.LINEAR.full(measured, Path())]
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
