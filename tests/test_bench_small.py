"""The benchmark of small calls: modes, and what is compiled."""

import dataclasses
import sys

import pytest
import torch

from bench import __main__, device_timing, report, results, run, timing
from bench.cases import MODES, OPTIONS, PLAIN
from bench.check import Expected
from bench.problem import Problem
from bench.providers import COMPILED, OURS, TORCH
from bench.results import LogitsResult
from bench.small.providers import PROVIDERS
from bench.subjects import SUBJECTS


def test_to_compile_is_a_mode_and_not_a_provider():
    assert not [name for name in PROVIDERS if name.startswith(COMPILED)]
    for name, provider in PROVIDERS.items():
        compiles = provider.supports(OPTIONS[PLAIN], "compiled")
        assert compiles == (name in (OURS, TORCH))
        assert provider.supports(OPTIONS[PLAIN], "eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", [OURS, TORCH])
def test_a_compiled_call_is_right_with_a_weight(name):
    problem = Problem(SUBJECTS["small"].shapes["64x10"], torch.float32)
    contender = run.Contender("compiled", OPTIONS["weight"], PROVIDERS[name])
    run.check(contender, problem, Expected(problem, contender.option))
    assert contender.status == results.OK, contender.detail


def test_on_a_gpu_the_host_times_calls_and_the_device_graphs(monkeypatch):
    asked = []

    def interleave(contenders, clock=timing.time_calls):
        asked.append(clock)
        return dict.fromkeys(contenders, timing.Summary(1.0, 1.0, 1.0, 7))

    def times_on_device(problem, contenders, baseline):
        return interleave(run.calls_of(problem, contenders, baseline), "graph")

    monkeypatch.setattr(run, "interleave", interleave)
    monkeypatch.setattr(run, "times_on_device", times_on_device)
    problem = Problem(SUBJECTS["small"].shapes["64x10"], torch.float32)
    problem.device = "cuda"
    for mode in MODES:
        contender = run.Contender(mode, OPTIONS[PLAIN], PROVIDERS[TORCH])
        contender.call = problem.call(mode, PROVIDERS[TORCH].load("eager"), contender.option)
        run.time_work(problem, [contender], run.COPY)
        assert contender.time.median == 1.0
    assert asked == [device_timing.time_on_host, device_timing.time_on_host, "graph"]


def test_the_command_measures_both_options_and_the_report_shows_them(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "SAMPLE_MICROSECONDS", 1.0)
    monkeypatch.setattr(timing, "MAX_ROUNDS", timing.MIN_ROUNDS)
    path = tmp_path / results.FOLDER / "logits-cpu-x-2-threads.csv"
    command = f"bench small --shapes 64x10 --works eager --csv {path} --providers {OURS} {TORCH}"
    monkeypatch.setattr(sys, "argv", command.split())
    assert __main__.main() == 0
    rows = results.read(path)
    assert [(row.work, row.option, row.provider, row.status) for row in rows] == [
        ("eager", option, name, results.OK)
        for option in (PLAIN, "weight")
        for name in (OURS, TORCH)
    ]
    assert all(row.median_us > 0 and row.copy_us > 0 for row in rows)


def row(provider, median_us, mode="eager", **rest):
    """A result of 64x10 on a machine that does not exist."""
    values = dict.fromkeys(results.COLUMNS, "x") | {
        "device": "cpu",
        "shape": "64x10",
        "size": "64x10",
        "dtype": "float32",
        "work": mode,
        "option": PLAIN,
        "provider": provider,
        "status": results.OK,
        "median_us": median_us,
        "q1_us": median_us,
        "q3_us": median_us,
        "rounds": 9,
        "calls": 1,
        "bytes": 7680,
        "copy_us": 1.5,
        "copy_bytes": 5120,
        "others_share": 0.0,
        "peak_bytes": None,
        "loss_error": 0.0,
        "target_error": 0.0,
        "other_error": 0.0,
    }
    return LogitsResult(**values | rest)


def test_tables_and_plot_have_a_part_for_each_mode(tmp_path):
    path = tmp_path / "logits-cpu-x-2-threads.csv"
    elsewhere = row(OURS, 5.0, "forward", shape="small")  # shares the file
    measured = [row(OURS, 40.0), row(TORCH, 50.0), row(OURS, 90.0, "compiled"), elsewhere]
    results.write(path, [*measured, row(TORCH, 60.0, "compiled")])
    shown = report.SMALL.read(path)
    assert elsewhere not in shown.results
    text = report.SMALL.full(shown, tmp_path)
    assert "#### Lost: 1 of 2 cases" in text
    assert "#### Eager call" in text
    assert "| 64x10 | plain | 40.0 µs | 50.0 µs (1.25x) | 1.50 µs |" in text
    assert "| 64x10 | plain | 90.0 µs | 60.0 µs (0.67x) | 1.50 µs |" in text
    assert report.draw(dataclasses.replace(shown, plot_names=("latency",)))[0].exists()
