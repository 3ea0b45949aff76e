"""The benchmark of training steps: the check, the state, and the search for the largest batch."""

import dataclasses
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from bench import __main__, report, results, run, timing
from bench.baselines import Body
from bench.cases import OPTIONS, PLAIN, STEP
from bench.check import CHUNK_ELEMENTS
from bench.linear.providers import TORCH
from bench.providers import OURS, Provider
from bench.results import TrainingResult
from bench.training import check
from bench.training import problem as training_problem
from bench.training.cases import SHAPES
from bench.training.check import TrainingExpected
from bench.training.problem import Step, TrainingProblem, largest_batch
from bench.training.providers import OF_LOGITS, PROVIDERS

TINY = dataclasses.replace(SHAPES["rehearsal"], size=(2, 8, 16, 1, 50))


@pytest.fixture
def problem():
    return TrainingProblem(TINY, torch.float32)


def checked(load, problem):
    contender = run.Contender(STEP, OPTIONS[PLAIN], Provider("planted", load))
    run.check(contender, problem, TrainingExpected(problem, contender.option))
    return contender


@pytest.mark.parametrize("name", [OURS, OF_LOGITS, TORCH])
def test_the_check_accepts_what_is_right(name, problem):
    contender = checked(PROVIDERS[name].load, problem)
    assert contender.status == results.OK, contender.detail
    assert set(contender.errors) == {"loss", "next_loss"}


def drop_head_gradient_elsewhere(hidden, head, target):
    is_target = torch.zeros(len(head), 1, dtype=torch.bool).index_fill_(0, target, True)
    logits = F.linear(hidden, head.detach() + is_target * (head - head.detach()))
    return F.cross_entropy(logits, target)


MISTAKES = {
    "head gradient dropped where no target is": drop_head_gradient_elsewhere,
    "hidden gradient dropped": lambda hidden, head, target: F.cross_entropy(
        F.linear(hidden.detach() + 0 * hidden, head), target
    ),
    "loss off by a thousandth": lambda hidden, head, target: (
        F.cross_entropy(F.linear(hidden, head), target) * 1.001
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_provider_is_reported_and_not_timed(mistake, problem):
    contender = checked(lambda work: MISTAKES[mistake], problem)
    assert contender.status == results.WRONG
    assert contender.time is None


def test_the_reference_is_chunked_and_that_of_pytorch(monkeypatch):
    hidden = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    head = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(7, (10,))
    assert CHUNK_ELEMENTS > 70
    monkeypatch.setattr(check, "CHUNK_ELEMENTS", 3 * 7)
    chunked, whole = (
        loss(hidden, head, target)
        for loss in (check.chunked_loss, lambda h, w, t: F.cross_entropy(F.linear(h, w), t))
    )
    torch.testing.assert_close(chunked, whole)
    for a, b in zip(
        *(torch.autograd.grad(loss, (hidden, head)) for loss in (chunked, whole)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_each_call_trains_a_model_of_its_own(problem):
    before = [each.clone() for each in problem.model.parameters()]
    step = Step(PROVIDERS[TORCH].load(STEP), problem)
    first, second = step.run(), step.run()
    assert second < first
    for ours, original in zip(problem.model.parameters(), before, strict=True):
        assert torch.equal(ours, original)


def test_the_state_is_the_model_and_two_moments_of_it(problem):
    step = Step(PROVIDERS[TORCH].load(STEP), problem)
    parameters = sum(each.nbytes for each in step.model.parameters())
    mask = 8 * 8 * 4
    assert step.state_bytes() == parameters + mask
    step.run()
    counters = 4 * len(list(step.model.parameters()))
    assert step.state_bytes() == 3 * parameters + mask + counters


def test_the_body_is_a_step_without_head_and_loss(problem):
    body = Body(problem)
    before = body.step.model.position.weight.clone()
    assert body.run().shape == ()
    assert not torch.equal(body.step.model.position.weight, before)


@pytest.mark.parametrize("start", [1, 8, 1000])
@pytest.mark.parametrize(
    "peak",
    [
        lambda batch: 100 + 7 * batch,
        lambda batch: 100 + 7 * batch + 30 * (batch // 8),  # a chunk in steps
        lambda batch: 5 * batch**1.5,
        lambda batch: 7 * batch if batch < 300 else math.inf,  # out of memory
    ],
)
def test_the_largest_batch_is_found_and_both_sides_measured(peak, start):
    measured = {start: peak(start)}

    def measure(batch):
        assert batch not in measured
        measured[batch] = peak(batch)
        return measured[batch]

    found = largest_batch(measure, 3000, dict(measured))
    assert measured[found] <= 3000 < measured[found + 1]
    assert len(measured) < 16


def test_no_batch_may_fit():
    assert largest_batch(lambda batch: 10 * batch + 1000, 900, {8: 1080}) == 0


def test_a_step_is_weighed_with_its_state_and_its_largest_batch(monkeypatch, problem):
    step = Step(PROVIDERS[TORCH].load(STEP), problem)
    step.run()
    problem.shape = dataclasses.replace(TINY, memory_limit=step.state_bytes() + 5000)
    calls = []
    monkeypatch.setattr(training_problem, "Transformer", None)  # that there is serves every batch

    def growth(call):
        calls.append(call())
        return 1000 * len(step.tokens if len(calls) == 1 else call.__self__.tokens)

    weighed = problem.weigh(step, growth)
    assert weighed == {
        "peak_bytes": 2000,
        "state_bytes": step.state_bytes(),
        "largest_batch": 5,
    }


def test_the_command_measures_and_the_report_shows_it(monkeypatch, tmp_path):
    monkeypatch.setitem(SHAPES, "tiny", dataclasses.replace(TINY, name="tiny", devices=("cpu",)))
    monkeypatch.setattr(timing, "SAMPLE_MICROSECONDS", 1.0)
    monkeypatch.setattr(timing, "MAX_ROUNDS", timing.MIN_ROUNDS)
    path = tmp_path / "training-cpu-x-2-threads.csv"
    command = f"bench training --shapes tiny --csv {path} --providers {OURS}".split()
    monkeypatch.setattr(sys, "argv", [*command, TORCH, OF_LOGITS])
    assert __main__.main() == 0
    rows = results.read(path, TrainingResult)
    assert [row.provider for row in rows] == [OURS, TORCH, OF_LOGITS]
    assert all(row.status == results.OK and row.median_us > 0 and row.body_us > 0 for row in rows)
    assert all(row.next_loss_error < 1e-4 for row in rows)

    weighed = [
        dataclasses.replace(row, peak_bytes=3 << 20, state_bytes=2 << 20, largest_batch=batch)
        for row, batch in zip(rows, (40, 10, 20), strict=True)
    ]
    results.write(path, weighed, TrainingResult)
    shown = report.TRAINING.read(path)
    assert [row.provider for row in shown.comparisons[0].others] == [TORCH]
    text = report.TRAINING.full(shown, tmp_path)
    assert "| tiny | 2x8x16x1x50 | float32 | 4 | 40 | 10 | 20 |" in text
    assert "| tiny | 2x8x16x1x50 | float32 | 3 | 3 | 3 | 2 |" in text
    assert "| 4 | 40 | 10 | 20 |" in report.TRAINING.summary(shown)
