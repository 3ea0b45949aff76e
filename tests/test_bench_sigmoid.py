"""The benchmark of labels that do not exclude each other: what is not that of given logits."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from bench import __main__, check, memory, report, results, run, timing
from bench.cases import PLAIN
from bench.environment import ROOT
from bench.problem import Problem
from bench.providers import COMPILED, OURS, Provider
from bench.results import LogitsResult
from bench.sigmoid.cases import OPTIONS, SHAPES, SigmoidShape
from bench.sigmoid.check import SigmoidExpected
from bench.sigmoid.comparison import compare
from bench.sigmoid.providers import PROVIDERS, TORCH, TORCHVISION
from bench.subjects import SUBJECTS

BOXES = SigmoidShape("boxes", (64, 5), "at most one label in a row")
LABELS = SigmoidShape("labels", (64, 5), "several labels in a row", share=0.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_labels_are_as_large_as_the_logits_and_yes_or_no(dtype):
    for shape, most in ((BOXES, 1), (LABELS, 5)):
        target = Problem(shape, dtype).target
        assert (target.shape, target.dtype) == (shape.size, dtype)
        assert set(target.unique().tolist()) == {0, 1}
        in_a_row = target.sum(1)
        assert in_a_row.min() == 0
        assert 1 <= in_a_row.max() <= most
        assert (in_a_row.max() > 1) == (shape is LABELS)


def test_the_share_of_labels_is_that_of_the_shape():
    target = Problem(SigmoidShape("x", (512, 512), "", share=0.25), torch.float32).target
    assert target.mean().item() == pytest.approx(0.25, abs=0.01)


def test_a_kernel_of_indices_is_not_given_several_labels():
    for shape, expected in ((BOXES, set()), (LABELS, {"several labels in a row"})):
        assert PROVIDERS["mmcv"].obstacles(shape, "float32") == expected
        assert PROVIDERS["apex"].obstacles(shape, "float32") == expected


def checked(loss, shape=BOXES, option=PLAIN, dtype=torch.float32, work="forward_backward"):
    """A contender of this loss after its check."""
    problem = Problem(shape, dtype)
    contender = run.Contender(work, OPTIONS[option], Provider("planted", lambda work: loss))
    run.check(contender, problem, SigmoidExpected(problem, OPTIONS[option]))
    return contender


@pytest.mark.parametrize("dtype", check.TOLERANCE, ids=str)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", [BOXES, LABELS], ids=lambda shape: shape.name)
def test_the_check_accepts_what_is_right(shape, option, dtype):
    for name in (OURS, TORCH):
        if PROVIDERS[name].supports(OPTIONS[option], "forward_backward"):
            loss = PROVIDERS[name].load("forward_backward")
            contender = checked(loss, shape, option, dtype)
            assert contender.status == results.OK, f"{name}: {contender.detail}"
            assert set(contender.errors) == {"loss", "target", "other"}


def test_the_reference_is_that_of_pytorch():
    problem = Problem(LABELS, torch.float64)
    expected = SigmoidExpected(problem, OPTIONS["weight"])
    logits = problem.logits.clone().requires_grad_()
    loss = F.binary_cross_entropy_with_logits(logits, problem.target, problem.weight)
    loss.backward()
    torch.testing.assert_close(expected.loss, loss.detach())
    torch.testing.assert_close(expected.gradients[0], logits.grad)


def drop_gradient_where(value):
    def loss(logits, target):
        logits.register_hook(lambda gradient: gradient.masked_fill(target == value, 0))
        return F.binary_cross_entropy_with_logits(logits, target)

    return loss


MISTAKES = {
    "gradient dropped where the label is yes": drop_gradient_where(1),
    "gradient dropped where the label is no": drop_gradient_where(0),
    "mean of rows": lambda *args: F.binary_cross_entropy_with_logits(*args) * BOXES.cols,
    "NaN": lambda logits, target: F.binary_cross_entropy_with_logits(logits * torch.nan, target),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_provider_is_reported_and_not_timed(mistake):
    contender = checked(lambda logits, target: MISTAKES[mistake](logits, target))
    assert contender.status == results.WRONG
    assert "other" in contender.detail
    assert contender.time is None


def test_a_focal_kernel_is_asked_for_nothing_else():
    supports = PROVIDERS[TORCHVISION].supports
    assert supports(OPTIONS["focal"], "forward_backward")
    assert not supports(OPTIONS[PLAIN], "forward_backward")
    assert not supports(OPTIONS["weight+focal"], "forward_backward")


def test_the_bytes_are_those_of_logits_labels_and_gradient():
    columns = SUBJECTS["sigmoid"].columns
    moved = {
        work: columns(BOXES, torch.bfloat16, work, OPTIONS[PLAIN], None)["bytes"]
        for work in ("forward", "backward", "forward_backward")
    }
    tensor = 64 * 5 * 2
    assert moved == {"forward": 2 * tensor, "backward": 3 * tensor, "forward_backward": 5 * tensor}


def row(provider, median_us, option="focal", **rest):
    """A result on a machine that does not exist."""
    values = dict.fromkeys(results.COLUMNS, "x") | {
        "device": "cpu",
        "shape": "detection",
        "size": "65536x80",
        "dtype": "float32",
        "work": "forward_backward",
        "option": option,
        "provider": provider,
        "status": results.OK,
        "detail": "",
        "median_us": median_us,
        "q1_us": median_us,
        "q3_us": median_us,
        "rounds": 7,
        "calls": 1,
        "others_share": 0.01,
        "peak_bytes": 20 << 20,
        "loss_error": 1e-7,
        "target_error": 2e-7,
        "other_error": 3e-7,
        "bytes": 4000,
        "copy_us": 2.0,
        "copy_bytes": 4000,
    }
    return LogitsResult(**values | rest)


RESULTS = [
    row(OURS, 4.0),
    row(TORCHVISION, 20.0),
    row("apex", 8.0),
    row(OURS, 4.0, PLAIN),
    row(TORCH, 12.0, PLAIN),
    row(COMPILED, 3.0, PLAIN),
]


def test_a_case_is_lost_to_whoever_is_faster():
    plain, focal = compare(RESULTS)
    assert (plain.case.option, plain.lead, plain.lost) == (PLAIN, 0.75, True)
    assert (focal.case.option, focal.lead, focal.lost) == ("focal", 2.0, False)


def test_report_shows_the_results_between_markers_of_their_own(tmp_path):
    results.write(tmp_path / results.FOLDER / "logits-cpu-x-2-threads.csv", RESULTS)
    for path in (report.SUMMARY, report.FULL):
        markers = "\n\n".join(f"{part.begin}\n{part.end}" for part in report.PARTS)
        (tmp_path / path).write_text(f"Before.\n\n{markers}\n\nAfter.\n")
    report.write(tmp_path)
    assert report.stale(tmp_path) == []
    summary = (tmp_path / report.SUMMARY).read_text()
    assert "| focal | 4.00 µs | - | - | 20.0 µs (5.00x) |" in summary
    assert "| plain | 4.00 µs | 12.0 µs (3.00x) | 3.00 µs (0.75x) | - |" in summary
    full = (tmp_path / report.FULL).read_text()
    lost, rest = full.split("#### Not timed")
    assert "| `torch.compile` 3.00 µs (0.75x) |" in lost
    assert "| 1.0 | 50% | 0% |" in rest  # GB/s, of the copy, spread
    assert "| apex | 8.00 µs | 2.00x | 0% | 20 | 1e-07; 2e-07; 3e-07 |" in rest


def test_the_command_measures_and_writes(monkeypatch, tmp_path):
    tiny = dataclasses.replace(BOXES, name="tiny", options=(PLAIN, "focal"))
    monkeypatch.setitem(SHAPES, "tiny", tiny)
    monkeypatch.setattr(timing, "SAMPLE_MICROSECONDS", 1.0)
    monkeypatch.setattr(timing, "MAX_ROUNDS", timing.MIN_ROUNDS)
    path = tmp_path / "sigmoid.csv"
    command = f"bench sigmoid --shapes tiny --csv {path} --dtypes float32 --providers {OURS}"
    monkeypatch.setattr(sys, "argv", [*command.split(), TORCH])
    assert __main__.main() == 0
    rows = results.read(path)
    assert {(each.work, each.option, each.provider) for each in rows} == {
        (work, *case)
        for work in ("forward", "forward_backward")
        for case in ((PLAIN, OURS), (PLAIN, TORCH), ("focal", OURS))
    }
    assert {each.status for each in rows} == {results.OK}
    assert all(each.median_us > 0 and each.copy_us > 0 for each in rows)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_provider_is_weighed_in_a_process_of_its_own():
    weighed = memory.measure(
        "sigmoid", OURS, "few-boxes", "float32", 1, [("forward", "weight+focal")]
    )
    assert set(weighed) == {("forward", "weight+focal")}


def test_torchvision_is_taken_without_its_compiled_operators(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import torch\nfor name in ('nms', 'qnms'):\n"
        "    torch.library.register_fake(f'torchvision::{name}', lambda: None)\n"
    )
    (package / "ops.py").write_text("def sigmoid_focal_loss(*arguments): return arguments\n")
    code = (
        "from bench.sigmoid.providers import PROVIDERS, TORCHVISION\n"
        "print(PROVIDERS[TORCHVISION].load('forward')('x', 't', gamma=2.0, alpha=0.25))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert finished.stdout == "('x', 't', 0.25, 2.0, 'mean')\n", finished.stderr
