"""The GPU report without a GPU: its sections keep to their time and out of each other's way."""

import json
import signal
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from itertools import product
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bench import (
    bandwidth,
    device_timing,
    environment,
    gpu_benchmarks,
    gpu_report,
    report,
    results,
    run,
    sections,
    smoke,
    timing,
)
from bench.__main__ import parser
from bench.cases import OPTIONS, PLAIN
from bench.gpu_report import FILES
from bench.problem import Forward, Problem
from bench.providers import Provider
from bench.sections import DONE, FAILED, SKIPPED, STOPPED, Section
from bench.shapes import SHAPES, Shape
from bench.subjects import SUBJECTS
from bench.timing import Summary
from torchce_cuda import _C

KNOWN = {"cores": "16", "gpu compute_cap": "9.0"}


def section(name, code="pass", seconds=20.0, **rest):
    return Section(name, [sys.executable, "-c", code], seconds, **rest)


def run_all(folder, *planned, seconds=60.0):
    reports = []
    deadline = time.monotonic() + seconds
    outcomes = sections.run_all(planned, folder, deadline, lambda so_far: reports.append(so_far[:]))
    assert [len(so_far) for so_far in reports] == list(range(1, len(planned) + 1))
    return outcomes


def test_a_crash_does_not_stop_the_rest(tmp_path):
    crash = "import os; print('before', flush=True); os.abort()"
    first, second = run_all(tmp_path, section("crash", crash), section("next", "print('after')"))
    assert (first.status, first.reason, first.tail) == (FAILED, "exit status -6", "before")
    assert (second.status, second.tail) == (DONE, "after")


def test_without_an_essential_section_nothing_follows(tmp_path):
    first, second = run_all(
        tmp_path, section("build", "raise SystemExit(1)", essential=True), section("next")
    )
    assert (first.status, first.reason) == (FAILED, "exit status 1")
    assert (second.status, second.reason) == (SKIPPED, "needs build: failed")


@pytest.mark.usefixtures("in_background")
def test_a_section_is_asked_to_end_and_then_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "GRACE_SECONDS", 4.0)
    asked = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('summed up')"
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    started = time.monotonic()
    outcomes = run_all(tmp_path, section("asked", asked, 7.0), section("deaf", deaf, 5.0))
    assert time.monotonic() - started < 40
    assert [outcome.status for outcome in outcomes] == [STOPPED, STOPPED]
    assert outcomes[0].tail == "summed up"
    assert outcomes[0].reason == "took its 7 s"


def test_what_may_take_longer_than_is_left_is_skipped_with_the_reason(tmp_path):
    long, short = run_all(
        tmp_path, section("long", seconds=100.0), section("short", seconds=50.0), seconds=60.0
    )
    assert long.status == SKIPPED
    assert long.reason.endswith("s left, it may take 100 s")
    assert short.status == DONE


def test_what_cannot_run_here_is_skipped_with_the_reason(tmp_path):
    (outcome,) = run_all(tmp_path, section("memcheck", obstacle="no such program"))
    assert (outcome.status, outcome.reason) == (SKIPPED, "no such program")


def test_sections_share_a_log_whose_size_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "MOST_LOG_BYTES", 12)
    first, second = run_all(
        tmp_path, section("a", "print('first')", log="log"), section("b", "print(2)", log="log")
    )
    assert (first.tail, second.tail) == ("first", "2")
    assert (tmp_path / "log").read_text() == "first\n2\n"
    run_all(tmp_path, section("c", "print('third')", log="log"))
    assert (tmp_path / "log").read_text() == "rst\n2\nthird\n"[-12:]


@pytest.fixture
def in_background():
    """Where a shell has SIGINT ignored, here and by all that is started."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """The folder that a rehearsal wrote; threads would only wait for each other."""
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / gpu_report.RESULTS).write_text("of an earlier run")
    (folder / "logits.partial").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        assert gpu_report.run(folder, 9.0, "cpu") == 0
    return folder


def test_a_rehearsal_writes_the_files_promised(rehearsal):
    written = {path.name for path in rehearsal.iterdir()}
    assert written == set(FILES)
    assert len(FILES) <= 8
    assert all((rehearsal / name).stat().st_size < 16 << 20 for name in written)
    known = json.loads((rehearsal / gpu_report.ENVIRONMENT).read_text())
    assert known["torch"] == torch.__version__
    assert {"cpu", "cores", "commit", "date", "copy GB/s"} <= set(known)


def test_a_rehearsal_measures(rehearsal):
    header, *_ = (rehearsal / gpu_report.RESULTS).read_text().splitlines()
    assert header.split(",") == results.COLUMNS
    rows = results.read(rehearsal / gpu_report.RESULTS)
    assert {row.status for row in rows} == {results.OK}
    works = {"forward", "forward_backward", "one_pass", "eager"}
    assert {row.work for row in rows} == works
    assert all(row.median_us > 0 and row.copy_us > 0 for row in rows)
    labels = [row for row in rows if row.shape in SUBJECTS["sigmoid"].shapes]
    assert {row.option for row in labels} == set(SUBJECTS["sigmoid"].options)


def test_a_rehearsal_reports_every_section(rehearsal):
    text = (rehearsal / gpu_report.REPORT).read_text()
    measured = [each.name for each in gpu_benchmarks.REHEARSAL]
    for name in ("build", "smoke test", "copy bandwidth", *measured, "tests", "plots"):
        assert f"| {name} | done |" in text
    assert "| memcheck | skipped |  | 1 | it watches a GPU |" in text
    count = len(smoke.SHAPES) * sum(map(len, smoke.FEW.values())) * len(smoke.FEW_WORKS)
    assert f"{count} of {count} results right" in text
    assert "#### Plain loss" in text
    assert "(logits-bandwidth.png)" in text
    for part in report.PARTS:
        shown = f"## {part.command.capitalize()}\n" in text
        assert shown == (part is not report.LINEAR_SCALING)


def test_a_report_begun_says_what_is_to_come(tmp_path):
    (tmp_path / gpu_report.ENVIRONMENT).write_text("{}")
    planned = [section("first"), section("second", seconds=7.0)]
    outcome = sections.Outcome("first", FAILED, 1.2, "exit status 1", "a | b\nlast")
    text = gpu_report.render(tmp_path, planned, [outcome])
    assert "| first | failed | 1 | 20 | exit status 1 |" in text
    assert "| second | not begun | | 7 | |" in text
    assert "```\na | b\nlast\n```" in text


def test_a_report_that_cannot_be_rendered_does_not_stop_the_rest(tmp_path, monkeypatch, capsys):
    def render(*arguments):
        raise ValueError("no such column")

    monkeypatch.setattr(gpu_report, "render", render)
    monkeypatch.setattr(gpu_report, "plan", lambda *_: [section("a"), section("b")])
    assert gpu_report.run(tmp_path, 1.0, "cpu") == 0
    said = capsys.readouterr().err
    assert "b: done" in said
    assert "ValueError: no such column" in said


def test_the_command_begins_before_there_is_a_build(tmp_path):
    without = "import sys; sys.modules['torchce_cuda'] = None; import bench.__main__"
    (outcome,) = run_all(tmp_path, section("import", without))
    assert outcome.status == DONE, outcome.tail


def test_without_a_gpu_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environment, "query_gpu", dict)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_report.run(tmp_path / "out", 9.0, "cuda") == 1
    assert "no GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_benchmark_on_a_gpu_is_one_that_exists(tmp_path):
    planned = gpu_report.plan(tmp_path, "cuda", KNOWN)
    measured = {name: set() for name in SUBJECTS}
    of_dtypes = set()
    for each in planned:
        if each.command[1:3] == ["-m", "bench"] and each.command[3] in SUBJECTS:
            arguments = parser().parse_args(each.command[3:])
            subject = SUBJECTS[arguments.subject]
            assert arguments.csv == tmp_path / f"{subject.file}.csv"
            on_gpu = [name for name, shape in subject.shapes.items() if "cuda" in shape.devices]
            measured[subject.name].update(arguments.shapes or on_gpu)
            for shape in (subject.shapes[name] for name in arguments.shapes or ()):
                dtypes = set(arguments.dtypes or shape.dtypes) & set(shape.dtypes)
                assert dtypes
                of_dtypes |= {(shape.name, dtype) for dtype in dtypes}
    assert measured == {
        name: {shape.name for shape in subject.shapes.values() if "cuda" in shape.devices}
        for name, subject in SUBJECTS.items()
    }
    heads = [name for name in SHAPES if name.startswith("head-") and name != "head-50264"]
    assert of_dtypes >= {(name, dtype) for name in heads for dtype in SHAPES[name].dtypes}


def test_the_vocabularies_on_a_gpu_fill_its_memory():
    heads = [shape for name, shape in SHAPES.items() if name.startswith("head-")]
    assert {shape.cols for shape in heads} >= {
        *(1000, 4096, 32000, 50257, 65536, 128256, 151936, 256000)
    }
    for shape in heads:
        assert set(shape.dtypes) == {"float32", "bfloat16", "float16"}
        assert shape.rows * shape.cols * 2 >= 0.5e9


def test_the_sections_on_a_gpu_are_in_order_of_worth(tmp_path):
    planned = gpu_report.plan(tmp_path, "cuda", KNOWN)
    names = [each.name for each in planned]
    assert names[:4] == ["build", "smoke test", "copy bandwidth", "forward"]
    sanitizers = list(gpu_report.SANITIZERS)
    in_order = ("tests", "linear", *sanitizers, "options", "small calls", "training, a large head")
    places = [names.index(name) for name in (*in_order, "scaling")]
    assert places == sorted(places)
    assert names.index("linear") < names.index("every provider") < names.index("scaling")
    assert names[-1] == "plots"
    assert len(names) == len(set(names))
    assert [each.name for each in planned if each.essential] == ["build"]
    assert planned[0].variables["TORCH_CUDA_ARCH_LIST"] == "9.0"
    # What is worth most fits even if it all takes as long as it may.
    assert sum(each.seconds for each in planned[: names.index("tests")]) <= 9 * 60


def test_the_tests_on_a_gpu_begin_with_what_only_it_can_show():
    command = gpu_report.gpu_tests(KNOWN).command
    first, *files = [argument for argument in command if argument.endswith(".py")]
    assert first == str(gpu_report.FIRST_TESTS)
    assert gpu_report.FIRST_TESTS.exists()
    assert set(files) == {str(p) for p in gpu_report.TESTS.glob("test_*.py")} - {first}
    assert len(set(files)) == len(files)


def test_who_was_measured_before_is_measured_again(tmp_path):
    """Or its rows would be lost with those that are measured again, which replace them all."""
    known = {}
    for each in gpu_report.plan(tmp_path, "cuda", KNOWN):
        if each.command[1:3] != ["-m", "bench"] or each.command[3] not in SUBJECTS:
            continue
        arguments = parser().parse_args(each.command[3:])
        subject = SUBJECTS[arguments.subject]
        shapes = arguments.shapes or [n for n, s in subject.shapes.items() if "cuda" in s.devices]
        everybody = [n for n, p in subject.providers.items() if "cuda" not in p.left_out]
        for shape in (subject.shapes[name] for name in shapes):
            options = set(arguments.options or shape.options)
            takes_part = set(product(options, arguments.providers or everybody))
            dtypes = set(arguments.dtypes or shape.dtypes) & set(shape.dtypes)
            works = arguments.works or subject.works["cuda"]
            for problem in product([subject.file], [shape.name], dtypes, works):
                assert known.setdefault(problem, set()) <= takes_part, (each.name, problem)
                known[problem] = takes_part


def test_the_sanitizers_watch_every_kernel():
    """They know ours by a part of the name, and would watch nothing if no kernel had it."""
    command = gpu_report.sanitizer("memcheck", []).command
    kind, name = command[command.index("--kernel-name") + 1].split("=")
    assert kind == "kernel_substring"
    sources = [path.read_text() for path in (environment.ROOT / "csrc" / "cuda").glob("*.cu*")]
    kernels = [source for source in sources if "__global__" in source]
    assert kernels
    for source in kernels:
        assert source.index(f"namespace {name}::") < source.index("__global__")


@pytest.mark.parametrize("few", [False, True])
def test_the_smoke_test_takes_every_way_through_the_kernels(few):
    block = 64  # or more threads
    shapes = [smoke.few(shape) if few else shape for shape in smoke.SHAPES]
    chosen = smoke.FEW if few else smoke.EVERYTHING
    dtypes = set(chosen)
    assert dtypes >= {torch.float32, torch.bfloat16, torch.float16}
    names = set().union(*chosen.values())
    assert names <= set(OPTIONS) and any(OPTIONS[name].probabilities for name in names)
    reached = set()
    for shape, dtype, direction, spread in product(
        shapes, dtypes, ("forward", "backward", "forward_backward"), (False, True)
    ):
        plan = _C.launch_plan(
            direction,
            shape.rows,
            shape.cols,
            dtype.itemsize,
            classes_are_neighbours=len(shape.size) == 2,
            second_look=spread,
        )
        strategy = plan["text"].split()[0]
        reached.add((strategy, min(plan["lanes"], block), plan["cluster"], plan["split"]))
    assert reached >= {
        *(("resident", lanes, 1, False) for lanes in (4, 8, 32, block)),
        *(("resident", block, cluster, False) for cluster in (2, 4, 8)),
        *(("streaming", lanes, 1, split) for lanes in (1, block) for split in (False, True)),
        *(("backward", lanes, 1, False) for lanes in (1, 4, 8, 16, 32, block)),
    }


def test_a_gpu_is_described_by_name(monkeypatch):
    line = "NVIDIA X, 1.2, 9.0, 80 MiB, P0, 1 MHz, 2 MHz, 3 MHz, 4 MHz, 5 W, 6 W, 30\n"
    monkeypatch.setattr(
        environment.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=line)
    )
    found = environment.query_gpu()
    assert (found["name"], found["compute_cap"], found["power.limit"]) == ("NVIDIA X", "9.0", "6 W")
    said = "clocks.sm 1 MHz, clocks.mem 2 MHz, power.draw 5 W, temperature.gpu 30"
    assert environment.clocks() == said


def test_a_gpu_is_described_where_its_tool_is_missing(monkeypatch):
    monkeypatch.setattr(environment, "query_gpu", dict)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X")
    found = environment.describe_host()
    assert (found["gpu name"], found["gpu compute_cap"]) == ("NVIDIA X", "9.0")


def test_outside_of_git_a_variable_says_the_commit(monkeypatch):
    def no_git(*arguments):
        raise FileNotFoundError("git")

    monkeypatch.setattr(environment, "_git", no_git)
    monkeypatch.delenv("TORCHCE_COMMIT", raising=False)
    assert environment.commit() == "unknown"
    monkeypatch.setenv("TORCHCE_COMMIT", "0123456789ab")
    assert environment.commit() == "0123456789ab"


def test_a_device_is_asked_while_it_copies(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    copies = []
    later = threading.Event()

    def copy():
        copies.append(None)
        if len(copies) > 3 * bandwidth.COPIES_UNDER_LOAD:
            later.set()

    def query():
        begun = len(copies)
        assert later.wait(20)
        return begun

    assert bandwidth.under_load(copy, query) >= bandwidth.COPIES_UNDER_LOAD


class FakeDevice:
    """A clock that each call moves on, for events to read."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        monkeypatch.setattr(torch.cuda, "Event", lambda **_: FakeEvent(self))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.log.append("wait"))

    def contender(self, prepare, run):
        """A contender of these durations in milliseconds."""

        def spend(name, duration):
            self.now += duration
            self.log.append(name)

        return SimpleNamespace(
            prepare=lambda: spend("prepare", prepare),
            run=lambda: spend("run", run),
            release=lambda: self.log.append("release"),
        )


class FakeEvent:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.time = self.device.now

    def elapsed_time(self, end):
        return end.time - self.time


def test_events_see_the_work_alone_and_a_call_goes_ahead(monkeypatch):
    device = FakeDevice(monkeypatch)
    assert device_timing.time_calls(device.contender(prepare=5.0, run=2.0), 2) == 2000.0
    assert device.log == ["prepare", "run"] * 3 + ["wait", "release"]


@pytest.mark.parametrize(("rows", "count"), [(64, 64), (1024, 24), (1 << 15, 4), (1 << 17, 0)])
def test_copies_exceed_the_cache_where_calls_are_short(monkeypatch, rows, count):
    cache = SimpleNamespace(L2_cache_size=8_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: cache)
    problem = Problem(Shape("x", (rows, 250), ""), torch.float32)  # 1000 bytes a row
    if count == 0:
        monkeypatch.setattr(device_timing, "LONG_CALL_BYTES", problem.logits.nbytes)
    copies = device_timing.copies(problem)
    assert len(copies) == count
    assert len({copy.logits.data_ptr() for copy in copies}) == count
    assert all(torch.equal(copy.logits, problem.logits) for copy in copies)


def test_the_host_is_timed_from_an_idle_device(monkeypatch):
    device = FakeDevice(monkeypatch)
    elapsed = iter([0, 3000, 10_000, 15_000])
    monkeypatch.setattr(timing, "perf_counter_ns", lambda: next(elapsed))
    assert device_timing.time_on_host(device.contender(0.0, 0.0), 2) == 4.0
    assert device.log == ["wait", *["prepare", "run"] * 2, "release"]


def test_a_graph_holds_the_work_apart_from_its_preparation(monkeypatch):
    device = FakeDevice(monkeypatch)
    log = device.log

    @contextmanager
    def mark(name):
        log.append(f"{name} begins")
        yield
        log.append(f"{name} ends")

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda entered: mark("stream"))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: mark("capture"))
    graphs = iter("AB")
    monkeypatch.setattr(
        torch.cuda,
        "CUDAGraph",
        lambda: SimpleNamespace(replay=partial(log.append, f"replay {next(graphs)}")),
    )
    call = device.contender(0.0, 0.0)
    call.prepares = True
    replay = device_timing.Replay([call, call])
    assert log[0] == "stream begins"
    captured = log[log.index("wait") + 1 :]
    assert captured == [
        *("stream begins", "capture begins", "prepare", "prepare", "capture ends", "stream ends"),
        *("stream begins", "capture begins", "run", "run", "capture ends", "stream ends"),
    ]
    log.clear()
    replay.prepare()
    replay.run()
    assert log == ["replay A", "replay B"]


class CaptureError(Exception):
    """What some compiler calls it."""


def test_what_cannot_be_captured_is_reported_and_the_rest_is_timed(monkeypatch):
    class Calls:
        def __init__(self, calls):
            if calls[0].run() is None:
                raise CaptureError("operation not permitted when stream is capturing")
            self.prepare, self.run, self.release = (
                calls[0].prepare,
                calls[0].run,
                calls[0].release,
            )

    problem = Problem(SHAPES["small"], torch.float32)
    monkeypatch.setattr(device_timing, "copies", lambda problem: [problem, problem.copy()])
    monkeypatch.setattr(device_timing, "Replay", Calls)
    monkeypatch.setattr(device_timing, "time_calls", timing.time_calls)
    monkeypatch.setattr(timing, "MAX_ROUNDS", timing.MIN_ROUNDS)
    contenders = []
    for name, loss in {"right": F.cross_entropy, "planted": lambda *_, **__: None}.items():
        contender = run.Contender("forward", OPTIONS[PLAIN], Provider(name, None, frozenset()))
        contender.call = Forward(loss, problem, contender.option)
        contenders.append(contender)
    times = run.times_on_device(problem, contenders)
    assert set(times) == {"plain right", run.COPY}
    assert times["plain right"].calls % 2 == 0
    assert [each.status for each in contenders] == [results.OK, results.FAILED]
    assert contenders[1].detail.startswith("CaptureError: operation not permitted")


def test_the_time_of_one_call_of_a_graph():
    assert Summary(8.0, 4.0, 12.0, 9, 3).of_one(4) == Summary(2.0, 1.0, 3.0, 9, 12)
