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
from pathlib import Path

from torch.utils.cpp_extension import CUDA_HOME

from bench import environment, gpu_peers, report, sections
from bench.cases import PLAIN, WORKS
from bench.comparison import LogitsComparison, time_ratio
from bench.sections import Outcome, Section

ENVIRONMENT, RESULTS, LINEAR_RESULTS = "environment.json", "logits.csv", "linear.csv"
SIGMOID_RESULTS = "sigmoid.csv"
REPORT, LOG = "report.md", "checks.log"
PLOTS = ("logits-speedup.png", "logits-options.png")
FILES = (ENVIRONMENT, RESULTS, LINEAR_RESULTS, SIGMOID_RESULTS, REPORT, LOG, *PLOTS)
PEERS = environment.ROOT / "build" / "peers"  # where the wheels of other kernels are installed

# Seconds, and arguments: calls that PyTorch makes to probe the driver may fail.
SANITIZERS = {"memcheck": (60, ["--report-api-errors", "no"]), "racecheck": (60, [])}
MOST_TEST_PROCESSES = 8  # each has a context of a few hundred MiB on the GPU

# Name, seconds at most, arguments of `python -m bench` and the command of the table. First those
# who are fast or much used, then everybody: each costs time, and some compile for long.
PASSES = "--works forward backward one_pass"
CHOSEN = "--providers torchce_cuda F.cross_entropy torch.compile Liger QuACK flash-attn"
HEADLINES = (
    ("forward", 50, f"--shapes head-128256 --dtypes bfloat16 --works forward {CHOSEN}"),
    (
        "backward",
        55,
        f"--shapes head-128256 --dtypes bfloat16 --works backward forward_backward {CHOSEN}",
    ),
    ("one pass", 50, f"--shapes head-128256 --dtypes bfloat16 --works one_pass {CHOSEN}"),
)
FURTHER_BENCHMARKS = (
    (
        "odd, short and long rows",
        75,
        f"--shapes head-50257 head-50264 head-1000 head-256000 --dtypes bfloat16 {PASSES} {CHOSEN}",
    ),
    ("options", 60, f"--shapes llama2-batch --dtypes bfloat16 {CHOSEN} fla mmcv"),
    (
        "other vocabularies",
        75,
        f"--shapes head-32000 head-151936 head-4096 head-65536 --dtypes bfloat16 {PASSES} {CHOSEN}",
    ),
)
CHOSEN_LINEAR = (
    "--providers torchce_cuda 'F.linear + F.cross_entropy' torch.compile F.linear_cross_entropy "
    "Liger 'Liger CuTe' cut-cross-entropy QuACK"
)
LINEAR_BENCHMARKS = (
    ("linear", 90, f"--shapes llama3-8b {CHOSEN_LINEAR}"),
    ("linear, other heads", 90, f"--shapes qwen2.5-3b gemma2-2b gpt2 {CHOSEN_LINEAR}"),
)
SIGMOID_BENCHMARKS = (("sigmoid", 60, "--dtypes bfloat16"),)
TRAINED_BENCHMARKS = (
    ("logits of a trained model", 90, f"--shapes trained-batch --dtypes bfloat16 {PASSES}"),
)
TRAINED_LINEAR_BENCHMARKS = (("head of a trained model", 60, "--shapes trained-batch"),)
WITH_EVERYBODY = (
    ("every provider", 120, f"--shapes head-128256 --dtypes bfloat16 {PASSES}"),
    ("every provider, options", 120, "--shapes llama2-batch --dtypes bfloat16"),
)
LINEAR_WITH_EVERYBODY = (
    ("linear, every provider", 150, "--shapes llama3-8b"),
    ("linear, many features", 120, f"--shapes deepseek-v3 llama3-70b {CHOSEN_LINEAR}"),
)
OTHER_DTYPES = (
    (
        "float32 and float16",
        120,
        f"--shapes head-128256 llama2-batch --dtypes float32 float16 --options plain {PASSES} "
        f"{CHOSEN}",
    ),
    (
        "segmentation, small shapes",
        60,
        "--shapes segmentation cityscapes volume small imagenet-batch --options plain",
    ),
    (
        "float32 and float16, other vocabularies",
        180,
        "--shapes head-50257 head-1000 head-256000 head-32000 head-151936 head-4096 head-65536 "
        f"--dtypes float32 float16 {PASSES} {CHOSEN}",
    ),
)
OTHER_SIGMOID_DTYPES = (("sigmoid, float32", 60, "--dtypes float32"),)
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
REHEARSED_SIGMOID = (("sigmoid", 60, "--shapes small --providers torchce_cuda"),)


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
        print("nvidia-smi finds no GPU; --device cpu rehearses without one", file=sys.stderr)
        return 1
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    (folder / ENVIRONMENT).write_text(json.dumps(known, indent=2) + "\n")
    if peers:
        os.environ["PYTHONPATH"] = gpu_peers.search_path(peers, PEERS)
    planned = [
        section
        for section in plan(folder, device, known)
        if not chosen or section.essential or section.name in chosen
    ]

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
            Section(name, [*measure, *shlex.split(arguments)], seconds)
            for name, seconds, arguments in table
        ]

    def linear_benchmarks(table: Sequence[tuple[str, int, str]]) -> list[Section]:
        return benchmarks(table, "linear", LINEAR_RESULTS)

    def sigmoid_benchmarks(table: Sequence[tuple[str, int, str]]) -> list[Section]:
        return benchmarks(table, "sigmoid", SIGMOID_RESULTS)

    if device == "cpu":
        return [
            Section("build", [*python, "torchce_cuda"], 60, LOG, essential=True),
            Section("smoke test", [*smoke, "--few"], 60, essential=True),
            Section("copy bandwidth", bandwidth, 60),
            *benchmarks(REHEARSAL),
            *linear_benchmarks(REHEARSED_LINEAR),
            *sigmoid_benchmarks(REHEARSED_SIGMOID),
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
        *sigmoid_benchmarks(SIGMOID_BENCHMARKS),
        *benchmarks(TRAINED_BENCHMARKS),
        *linear_benchmarks(TRAINED_LINEAR_BENCHMARKS),
        *benchmarks(WITH_EVERYBODY),
        *linear_benchmarks(LINEAR_WITH_EVERYBODY),
        *benchmarks(OTHER_DTYPES),
        *sigmoid_benchmarks(OTHER_SIGMOID_DTYPES),
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
        command += ["-n", str(processes)]
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
    if (folder / RESULTS).exists():
        measured = report.LOGITS.read(folder / RESULTS)
        parts += ["## Logits", report.LOGITS.full(measured, Path())]
        parts += ["#### Odd rows", odd_rows(measured.comparisons) or "None."]
    if (folder / LINEAR_RESULTS).exists():
        measured = report.LINEAR.read(folder / LINEAR_RESULTS)
        parts += ["## Linear", report.LINEAR.full(measured, Path())]
    if (folder / SIGMOID_RESULTS).exists():
        measured = report.SIGMOID.read(folder / SIGMOID_RESULTS)
        parts += ["## Sigmoid", report.SIGMOID.full(measured, Path())]
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
