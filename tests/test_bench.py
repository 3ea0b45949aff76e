"""The benchmark's own arithmetic and honesty. Nothing here asserts a time."""

import dataclasses
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bench import (
    __main__,
    causes,
    check,
    environment,
    memory,
    plots,
    report,
    results,
    run,
    tables,
    timing,
    traffic,
)
from bench.baselines import Copy
from bench.cases import (
    COPY_BUDGETS,
    MODES,
    OPTION_BUDGETS,
    OPTIONS,
    PLAIN,
    SPEEDUP_BUDGETS,
    WORKS,
    WORKS_OF_DEVICE,
)
from bench.comparison import compare, share_of_copy
from bench.environment import ROOT
from bench.problem import CALL_OF_WORK, Problem
from bench.providers import COMPILED, LIGER, OURS, PROVIDERS, TORCH, Provider
from bench.results import LogitsResult
from bench.shapes import SEGMENTATION, SHAPES, Shape
from bench.subjects import SUBJECTS

TINY = Shape("tiny", (6, 5, 3), "classes in the middle, as in segmentation")


@pytest.mark.parametrize(
    ("work", "probabilities", "expected"),
    [
        # 1024 x 32000 float32 is 131 072 000 bytes; the targets are 1024 int64, 8192 bytes.
        ("forward", False, 131_072_000 + 8192),
        ("forward_backward", False, 3 * 131_072_000 + 2 * 8192),
        ("one_pass", False, 2 * 131_072_000 + 8192),
        # Probabilities are as large as the logits and read once by each pass.
        ("forward", True, 2 * 131_072_000),
        ("forward_backward", True, 5 * 131_072_000),
        ("one_pass", True, 3 * 131_072_000),
    ],
)
def test_traffic_matches_a_hand_count(work, probabilities, expected):
    assert traffic.BYTES_OF_WORK[work](1024, 32000, 4, probabilities) == expected


def test_traffic_of_a_copy_is_a_read_and_a_write():
    assert traffic.copy(1024, 32000, 2) == 2 * 65_536_000


def test_every_name_that_results_refer_to_exists():
    assert set(traffic.BYTES_OF_WORK) == set(CALL_OF_WORK) == set(WORKS | MODES)
    for device, budgets in OPTION_BUDGETS.items():
        assert set(budgets) <= set(OPTIONS)
        assert set(WORKS_OF_DEVICE[device]) <= set(WORKS)
    for shape, work in COPY_BUDGETS:
        assert "cuda" in SHAPES[shape].devices
        assert work in WORKS
    for shape, dtype, work in SPEEDUP_BUDGETS:
        assert dtype in SHAPES[shape].dtypes
        assert work in WORKS


def test_images_and_volumes_are_a_group_of_their_own():
    assert list(SEGMENTATION) == ["segmentation", "cityscapes", "volume"]
    arguments = __main__.parser().parse_args(["segmentation"])
    assert (arguments.subject, arguments.shapes) == ("logits", list(SEGMENTATION))


def test_names_of_shapes_that_share_a_file_are_unique():
    names = {}
    for subject in SUBJECTS.values():
        names.setdefault(subject.file, []).extend(subject.shapes)
    for of_file in names.values():
        assert len(set(of_file)) == len(of_file)


def test_every_command_writes_the_file_that_its_part_shows():
    for part in report.PARTS:
        subject = SUBJECTS[part.command]
        assert (part.file, part.row) == (subject.file, subject.result)
        assert part.shapes is subject.shapes


def test_summary_of_known_samples():
    summary = timing.Summary.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (summary.q1, summary.median, summary.q3, summary.rounds) == (2.0, 3.0, 4.0, 5)


def test_one_outlier_moves_neither_median_nor_quartiles():
    quiet = timing.Summary.of([10.0, 11.0, 12.0, 13.0, 14.0])
    disturbed = timing.Summary.of([10.0, 11.0, 12.0, 13.0, 1e6])
    assert quiet == disturbed


def test_rounds_and_calls_fit_the_time():
    assert timing.calls_per_sample(50.0) == 40  # 2 ms
    assert timing.calls_per_sample(1e5) == 1
    assert timing.rounds_for(4 * 0.1e6, contenders=4) == 10  # 4 s for rounds of 0.4 s
    assert timing.rounds_for(1e9, contenders=4) == timing.MIN_ROUNDS
    assert timing.rounds_for(1.0, contenders=4) == timing.MAX_ROUNDS


class Recorder:
    """A contender that only writes down what is done to it."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def prepare(self):
        self.log.append((self.name, "prepare"))

    def run(self):
        self.log.append((self.name, "run"))

    def release(self):
        self.log.append((self.name, "release"))


def test_interleaving_prepares_every_call_and_takes_turns(monkeypatch):
    monkeypatch.setattr(timing, "SAMPLE_MICROSECONDS", 1e-3)  # one call per sample
    monkeypatch.setattr(timing, "MAX_ROUNDS", 9)
    log = []
    summaries = timing.interleave({name: Recorder(name, log) for name in "abc"})

    assert all(summaries[name].rounds == 9 for name in "abc")
    runs = [index for index, (_, event) in enumerate(log) if event == "run"]
    assert all(log[index - 1] == (log[index][0], "prepare") for index in runs)
    rounds = [log[index][0] for index in runs[-9 * 3 :]]
    assert rounds[:9] == list("abcbcacab")  # each round begins with the next contender


@pytest.mark.parametrize("dtype", check.TOLERANCE, ids=str)
@pytest.mark.parametrize("option", OPTIONS.values(), ids=lambda option: option.name)
def test_the_check_accepts_what_is_right(option, dtype):
    problem = Problem(TINY, dtype)
    expected = check.Expected(problem, option)
    for name in (OURS, TORCH):
        provider = PROVIDERS[name]
        for work in WORKS:
            if not provider.supports(option, work):
                continue
            call = CALL_OF_WORK[work](provider.load(work), problem, option)
            errors = expected.errors(call)
            assert errors.within(check.TOLERANCE[dtype]), f"{name} {work}: {errors}"


def drop_gradient_elsewhere(logits, target, **arguments):
    """Right at the target, zero at all other entries: what a loose absolute tolerance accepts."""
    is_target = F.one_hot(target, logits.shape[1]).movedim(-1, 1).bool()
    logits.register_hook(lambda gradient: gradient.masked_fill(~is_target, 0))
    return F.cross_entropy(logits, target, **arguments)


def forget_last_class(logits, target, weight):
    return F.cross_entropy(logits[:, :-1], target, weight[:-1])


MISTAKES = {
    "off-target gradient dropped": drop_gradient_elsewhere,
    "loss off by a thousandth": lambda *logits, **rest: F.cross_entropy(*logits, **rest) * 1.001,
    "weight forgotten": lambda logits, target, weight: F.cross_entropy(logits, target),
    "sum for mean": lambda logits, target, weight: F.cross_entropy(
        logits, target, weight, reduction="sum"
    ),
    "NaN": lambda logits, **rest: F.cross_entropy(logits * torch.nan, **rest),
    "last class forgotten": forget_last_class,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_provider_is_reported_and_not_timed(mistake):
    problem = Problem(TINY, torch.float32)
    problem.target.clamp_(max=TINY.cols - 2)  # a forgotten last class must not raise
    option = OPTIONS["weight"]
    planted = Provider("planted", lambda work: MISTAKES[mistake], frozenset())
    contender = run.Contender("forward_backward", option, planted)
    run.check(contender, problem, check.Expected(problem, option))
    assert contender.status == results.WRONG
    assert "loss" in contender.detail
    assert contender.time is None


def test_a_provider_that_raises_is_reported():
    def loss(logits, target):
        raise RuntimeError("no such kernel\nand a long trace")

    problem = Problem(TINY, torch.float32)
    contender = run.Contender(
        "forward", OPTIONS[PLAIN], Provider("x", lambda work: loss, frozenset())
    )
    run.check(contender, problem, check.Expected(problem, OPTIONS[PLAIN]))
    assert (contender.status, contender.detail) == (results.FAILED, "RuntimeError: no such kernel")


def test_a_provider_that_cannot_be_loaded_is_skipped_with_the_reason(monkeypatch, capsys):
    def load(work):
        raise ImportError("needs a CUDA device")

    monkeypatch.setitem(PROVIDERS, "absent", Provider("absent", load, frozenset()))
    assert "absent" not in [
        provider.name for provider in run.available_providers(PROVIDERS.values())
    ]
    assert "skipped absent: needs a CUDA device" in capsys.readouterr().err


def test_one_pass_gets_new_logits_for_every_call():
    problem = Problem(TINY, torch.float32)
    original = problem.logits.clone()

    def overwrite(logits, target):
        loss = F.cross_entropy(logits, target)
        logits.data.zero_()
        return loss

    call = CALL_OF_WORK["one_pass"](overwrite, problem, OPTIONS[PLAIN])
    losses = []
    for _ in range(2):
        call.prepare()
        losses.append(call.run().item())
    assert losses[0] == losses[1]
    assert torch.equal(problem.logits, original)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_growth_sees_memory_that_is_freed_again():
    program = (
        "import torch; from bench import memory\n"
        "print(memory.resident_growth(lambda: [torch.ones(16 << 20), None][1]))"  # 64 MiB
    )
    measured = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | memory.RETURN_FREED,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.9 * (64 << 20) < int(measured.stdout) < 1.5 * (64 << 20)


def row(provider, median_us, option=PLAIN, work="forward_backward"):
    """A result of imagenet in float32 on a machine that does not exist."""
    values = dict.fromkeys(results.COLUMNS, "x") | {
        "device": "cpu",
        "shape": "imagenet",
        "size": "8192x1000",
        "dtype": "float32",
        "work": work,
        "option": option,
        "provider": provider,
        "status": results.OK,
        "detail": "",
        "median_us": median_us,
        "q1_us": median_us,
        "q3_us": median_us * 1.5,
        "rounds": 9,
        "calls": 1,
        "bytes": 3000,
        "copy_us": 2.0,
        "copy_bytes": 4000,
        "others_share": 0.01,
        "peak_bytes": None,
        "loss_error": 1e-7,
        "target_error": 1e-7,
        "other_error": None,
    }
    return LogitsResult(**values)


def test_a_share_of_the_copy_is_a_budget_on_a_gpu():
    rows = [
        dataclasses.replace(
            row(provider, time, work="backward"), device="cuda", shape="head-1000", bytes=4000
        )
        for provider, time in ((OURS, 2.5), (LIGER, 2.0))
    ]
    (slow,) = compare(rows)  # 4000 bytes in 2.5 us, where they are copied in 2
    assert (slow.copy_budget, slow.met, slow.lost) == (0.88, False, True)
    assert tables.fastest_other(slow) == "`Liger` 2.00 µs (0.80x)"
    (fast,) = compare([dataclasses.replace(rows[0], median_us=2.1)])
    assert (fast.met, fast.lost) == (True, False)
    assert [str(promise) for promise in fast.judged] == ["≥ 88% of copy: met"]


RESULTS = [
    row(OURS, 10.0),
    row(TORCH, 40.0),
    row(COMPILED, 20.0),
    row(OURS, 12.0, option="focal"),
    row(OURS, 5.0, work="forward"),
    row(TORCH, 4.0, work="forward"),
    row(LIGER, 6.0, work="forward"),
    dataclasses.replace(
        row(COMPILED, 0.0, work="forward"),
        status=results.WRONG,
        detail="loss 1.0e+00",
        median_us=None,
        q1_us=None,
        q3_us=None,
    ),
]


def test_results_survive_a_round_trip(tmp_path):
    path = tmp_path / "results.csv"
    results.write(path, RESULTS)
    assert results.read(path) == RESULTS


def test_merging_replaces_what_was_measured_again_and_keeps_the_rest(tmp_path):
    path = tmp_path / "results.csv"
    results.merge(path, RESULTS)
    again = [row(OURS, 9.0)]
    results.merge(path, again)
    forward = [result for result in RESULTS if result.work == "forward"]
    assert results.read(path) == forward + again


def test_a_group_that_only_raised_replaces_nothing(tmp_path):
    path = tmp_path / "results.csv"
    results.merge(path, RESULTS)
    raised = dataclasses.replace(row(OURS, 0.0), status=results.FAILED, median_us=None)
    results.merge(path, [raised])
    assert results.read(path) == RESULTS
    elsewhere = dataclasses.replace(raised, work="one_pass")
    results.merge(path, [elsewhere])
    assert results.read(path) == [*RESULTS, elsewhere]


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Runs `F.cross_entropy` of the smallest shape, timed by a function; returns the file."""
    path = tmp_path / "logits.csv"
    command = f"bench logits --shapes small --options plain --no-memory --csv {path}"
    command += f" --providers {TORCH} --works forward one_pass --dtypes float32"

    def measure(interleave):
        monkeypatch.setattr(run, "interleave", interleave)
        monkeypatch.setattr(sys, "argv", command.split())
        __main__.main()

    return path, measure


def after_one(error):
    """Of two kinds of work one is timed, the other raises."""
    summaries = iter([timing.Summary(1.0, 1.0, 1.0, 7)])

    def interleave(contenders, *_):
        if summary := next(summaries, None):
            return dict.fromkeys(contenders, summary)
        raise error

    return interleave


def test_a_command_leaves_out_where_its_results_go():
    expected = "python -m bench logits --shapes small"
    for into in (["--csv", "of this machine.csv"], ["--csv=x.csv"], []):
        assert environment.command(["logits", *into, "--shapes", "small"]) == expected


def test_what_raises_while_it_is_timed_is_recorded(measured, capsys):
    path, measure = measured
    measure(after_one(torch.OutOfMemoryError("out of memory\nand a long trace")))
    reason = "OutOfMemoryError: out of memory"
    assert [(row.work, row.status, row.detail) for row in results.read(path)] == [
        ("forward", results.OK, ""),
        ("one_pass", results.FAILED, reason),
    ]
    assert f"failed: one_pass: {reason}" in capsys.readouterr().err


def test_each_work_is_written_when_it_is_done(measured):
    path, measure = measured
    with pytest.raises(KeyboardInterrupt):
        measure(after_one(KeyboardInterrupt()))
    assert [row.work for row in results.read(path)] == ["forward"]


def test_a_problem_that_cannot_be_made_does_not_end_the_run(tmp_path):
    def problem(shape, *where):
        if shape.name == "small":
            raise torch.OutOfMemoryError("too large")
        return Problem(TINY, *where)

    path = tmp_path / "results.csv"
    plan = run.Plan(
        subject=dataclasses.replace(SUBJECTS["logits"], problem=problem),
        device="cpu",
        shapes=[SHAPES["small"], TINY],
        dtypes=["float32"],
        works=["forward"],
        options=None,
        providers=[TORCH],
        minutes=None,
        weigh=False,
        threads=torch.get_num_threads(),
        csv=path,
    )
    with pytest.raises(SystemExit, match="not measured: small float32"):
        run.run(plan)
    assert [row.shape for row in results.read(path)] == ["tiny"]


def test_comparison_of_known_times():
    forward, plain, focal = compare(RESULTS)
    assert (plain.speedup, plain.speedup_over_compiled, plain.met, plain.lost) == (
        4,
        2,
        True,
        False,
    )
    assert (focal.cost, focal.met, focal.lost) == (1.2, False, True)  # the budget is 1.1
    assert (forward.speedup, forward.compiled, forward.lost) == (0.8, None, True)
    # 3000 bytes in 10 us are 0.3 GB/s, the copy's 4000 in 2 us are 2 GB/s.
    assert share_of_copy(plain.ours) == pytest.approx(0.15)


@pytest.fixture
def checkout(tmp_path):
    """A checkout with results of given logits and two documents, rendered."""
    results.write(tmp_path / results.FOLDER / "logits-cpu-x-2-threads.csv", RESULTS)
    for path in (report.SUMMARY, report.FULL):
        markers = "\n\n".join(f"{part.begin}\n{part.end}" for part in report.PARTS)
        (tmp_path / path).write_text(f"Before.\n\n{markers}\n\nAfter.\n")
    report.write(tmp_path)
    return tmp_path


def test_report_shows_the_results_and_keeps_the_text_around(checkout):
    assert report.stale(checkout) == []
    assert report.write(checkout) == []
    summary = (checkout / report.SUMMARY).read_text()
    assert summary.startswith("Before.\n")
    assert summary.endswith("\nAfter.\n")
    assert "| 10.0 µs | 40.0 µs | 20.0 µs | 4.00x | 2.00x |" in summary
    full = (checkout / report.FULL).read_text()
    lost, rest = full.split("#### Not timed")
    assert "0.80x" in lost
    assert "cost ≤ 1.1x: **not met**" in lost
    assert "| `F.cross_entropy` 4.00 µs (0.80x) |" in lost
    assert "| forward | plain | Liger | 6.00 µs | 1.20x | 50% | - | 1e-07; 1e-07 |" in rest
    assert "wrong: loss 1.0e+00" in rest


def test_check_rejects_a_number_typed_into_a_table(checkout):
    path = checkout / report.FULL
    path.write_text(path.read_text().replace("4.00x", "4.10x"))
    assert report.stale(checkout) == [path]


def test_check_rejects_tables_and_plots_of_other_results(checkout):
    path = checkout / results.FOLDER / "logits-cpu-x-2-threads.csv"
    results.write(path, [*RESULTS, row(TORCH, 41.0, option="smoothing")])
    names = {stale.name for stale in report.stale(checkout)}
    assert names >= {
        "README.md",
        "logits-cpu-x-2-threads-speedup.png",
        "logits-cpu-x-2-threads-options.png",
    }


def test_report_refuses_a_document_without_markers(checkout):
    (checkout / report.SUMMARY).write_text("no markers")
    with pytest.raises(ValueError, match="README.md: expected <!-- bench:logits begin"):
        report.stale(checkout)


def test_committed_tables_agree_with_committed_results():
    command = [sys.executable, "-m", "bench", "report", "--check"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_results_of_a_gpu_are_shown_after_those_of_a_cpu(checkout):
    on_gpu = [
        dataclasses.replace(each, device="cuda", shape="head-1000", machine="GPU X", threads="16")
        for each in (row(OURS, 2.5, work="forward"), row(TORCH, 5.0, work="forward"))
    ]
    path = checkout / "gpu" / "logits.csv"
    results.write(path, on_gpu)
    (adopted,) = report.adopt(path.parent, checkout)
    assert adopted == checkout / results.FOLDER / "logits-cuda-gpu-x.csv"
    report.write(checkout)
    assert report.stale(checkout) == []
    full = (checkout / report.FULL).read_text()
    assert full.index("### x, x threads") < full.index("### GPU X\n")
    summary = (checkout / report.SUMMARY).read_text()
    assert "| 2.50 µs | 5.00 µs |" in summary
    assert "logits-cuda-gpu-x-bandwidth.png" in summary
    assert "logits-cpu-x-2-threads-speedup.png" in summary


def test_a_rehearsal_is_not_adopted(checkout):
    path = checkout / "gpu" / "logits.csv"
    results.write(path, [dataclasses.replace(row(OURS, 1.0), threads="2")])
    assert report.adopt(path.parent, checkout) == []


def test_results_without_later_columns_are_read(tmp_path):
    path = tmp_path / "results.csv"
    names = [name for name in results.COLUMNS if name not in ("packages", "clocks")]
    values = ["x" if name in ("device", "shape") else "1" for name in names]
    path.write_text("\n".join(",".join(line) for line in (names, values)) + "\n")
    (read,) = results.read(path)
    assert (read.device, read.median_us, read.packages) == ("x", 1.0, "")


def test_packages_that_take_part_are_named_with_their_versions(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package", "torch"))
    assert environment.packages() == f"torch {torch.__version__}"


def test_every_cause_is_of_something_that_is_measured():
    for each in causes.CAUSES:
        subject = SUBJECTS[each.subject]
        assert set(each.shapes) <= set(subject.shapes)
        assert set(each.options) <= set(OPTIONS)
        assert set(each.works) <= set(subject.works[each.device])
        assert each.cause
        assert each.fix


def test_the_first_cause_that_fits_is_shown_beside_a_lost_case(monkeypatch, checkout):
    plain = causes.Cause("slow", "make it fast", "logits", shapes=("imagenet",), works=("forward",))
    other = causes.Cause("not this", "nothing", "logits", shapes=("imagenet",), options=(PLAIN,))
    monkeypatch.setattr(causes, "CAUSES", (plain, other))
    report.write(checkout)
    lost, _ = (checkout / report.FULL).read_text().split("#### Not timed")
    forward, focal = lost.strip().splitlines()[-2:]
    assert forward.endswith("| slow; make it fast |")
    assert focal.endswith(f"| {causes.UNKNOWN} |")
    assert causes.explain("small", row(OURS, 1.0, work="forward")) == causes.UNKNOWN


def test_shares_of_the_copy_are_drawn_of_the_shape_with_most_rows(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_line", lambda axes, values, *_: drawn.append(values))
    monkeypatch.setattr(plots, "_save", lambda *_: None)
    large = {"copy_bytes": 2 * plots.LEAST_BYTES, "bytes": 2 * plots.LEAST_BYTES}
    measured = [
        dataclasses.replace(row(OURS, time), shape=shape, size=size, **rest)
        for time, shape, size, rest in (
            (4.0, "llama3-decode", "16x1000", large),
            (8.0, "llama3", "256x1000", large),
            (2.0, "small", "64x10", {}),
            (2.0, "segmentation", "8x21x512x512", large),
        )
    ]
    plots.bandwidth(compare(measured), None, "")
    assert drawn == [{1000: pytest.approx(25)}]  # the copy takes 2 us for as many bytes


def test_copy_copies():
    copy = Copy(Problem(TINY, torch.float32))
    copy.prepare()
    assert torch.equal(copy.run(), copy.source)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_other_processes_are_told_from_this_one(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 900 5 0 0 0 0 0\n")
    monkeypatch.setattr(environment, "PROC_STAT", stat)
    ticks = environment.os.sysconf("SC_CLK_TCK")
    own = iter([SimpleNamespace(user=1.0, system=0.5), SimpleNamespace(user=3.0, system=1.0)])
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(environment.os, "times", lambda: next(own))
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(environment.time, "monotonic", lambda: next(clock))

    others = environment.OtherProcesses()
    stat.write_text(f"cpu  {100 + 2 * ticks} 0 {50 + ticks} 900 5 0 0 {ticks // 2} 0 0\n")
    assert others.share() == pytest.approx((3.5 - 2.5) / (10 * 2))
