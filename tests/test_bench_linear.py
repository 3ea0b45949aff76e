"""The benchmark of hidden states and a head: what is not that of given logits."""

import dataclasses
import sys

import pytest
import torch
import torch.nn.functional as F

from bench import __main__, check, gpu_report, memory, report, results, run, timing
from bench.baselines import Products
from bench.cases import OPTIONS
from bench.linear.cases import MEMORY_BUDGETS, OPTION, PRODUCTS_BUDGETS, SHAPES, WORK, LinearShape
from bench.linear.check import LinearExpected
from bench.linear.comparison import compare
from bench.linear.providers import CUT, CUT_COMPILED, PROVIDERS, TORCH, TORCH_FLOAT, TORCH_LINEAR
from bench.problem import Problem
from bench.providers import AUTOTUNED, COMPILED, FLA, LIGER, OURS, QUACK, Provider
from bench.results import LinearResult

TINY = LinearShape("tiny", (6, 4, 9), "more classes than rows, so that some are no target")
PLAIN = OPTIONS[OPTION]


def test_a_head_is_described_by_its_rows_features_and_classes():
    problem = Problem(TINY, torch.float32)
    assert [tuple(each.shape) for each in problem.inputs] == [(6, 4), (9, 4)]
    assert problem.target.shape == (6,)
    assert problem.logits_bytes == 6 * 9 * 4
    assert (TINY.rows, TINY.cols, TINY.label) == (6, 9, "6x4x9")


def test_every_budget_is_of_a_shape_that_is_measured_there():
    for device, budgets in PRODUCTS_BUDGETS.items():
        assert budgets
        assert all(device in SHAPES[name].devices for name in budgets)
    for device, name, dtype in MEMORY_BUDGETS:
        assert device in SHAPES[name].devices
        assert dtype in SHAPES[name].dtypes


def test_the_bare_products_are_those_of_the_layer():
    problem = Problem(TINY, torch.float64)
    hidden, head = problem.inputs
    products = Products(problem)
    products.prepare()
    products.run()
    logits = hidden @ head.t()
    torch.testing.assert_close(products.logits, logits)
    torch.testing.assert_close(products.grad_hidden, logits @ head)
    torch.testing.assert_close(products.grad_head, logits.t() @ hidden)


def checked(load, shape=TINY, dtype=torch.float32):
    """A contender of this provider after its check."""
    problem = Problem(shape, dtype)
    contender = run.Contender(WORK, PLAIN, Provider("planted", load))
    run.check(contender, problem, LinearExpected(problem, PLAIN))
    return contender


@pytest.mark.parametrize("dtype", check.TOLERANCE, ids=str)
@pytest.mark.parametrize("name", [OURS, TORCH])
def test_the_check_accepts_what_is_right(name, dtype):
    contender = checked(PROVIDERS[name].load, dtype=dtype)
    assert contender.status == results.OK, contender.detail
    assert set(contender.errors) == {"loss", "hidden", "head_target", "head_other"}


def test_every_class_may_be_a_target():
    contender = checked(PROVIDERS[OURS].load, LinearShape("few", (64, 4, 2), ""))
    assert contender.status == results.OK
    assert "head_other" not in contender.errors


def separate(hidden, head, target):
    return F.cross_entropy(F.linear(hidden, head), target)


def drop_hidden_gradient_of_softmax(hidden, head, target):
    hidden.register_hook(lambda gradient: -head[target] / len(target))
    return separate(hidden, head, target)


def drop_head_gradient_elsewhere(hidden, head, target):
    is_target = torch.zeros(len(head), 1, dtype=torch.bool).index_fill_(0, target, True)
    head.register_hook(lambda gradient: gradient.masked_fill(~is_target, 0))
    return separate(hidden, head, target)


MISTAKES = {
    "hidden gradient without its softmax": drop_hidden_gradient_of_softmax,
    "head gradient dropped where no target is": drop_head_gradient_elsewhere,
    "loss off by a thousandth": lambda *args, **rest: separate(*args, **rest) * 1.001,
    "last chunk forgotten": lambda hidden, head, target: separate(hidden[:-1], head, target[:-1]),
    "NaN": lambda hidden, head, target: separate(hidden * torch.nan, head, target),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_provider_is_reported_and_not_timed(mistake):
    contender = checked(lambda work: MISTAKES[mistake])
    assert contender.status == results.WRONG
    assert "head_other" in contender.detail
    assert contender.time is None


def test_a_missing_gradient_is_reported():
    def loss(hidden, head, target):
        return separate(hidden, head.detach(), target)

    contender = checked(lambda work: loss)
    assert contender.status == results.FAILED
    assert contender.detail == "RuntimeError: an input got no gradient"


def test_providers_that_cannot_be_loaded_are_skipped_with_the_reason(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    available = run.available_providers(PROVIDERS.values())
    assert [provider.name for provider in available] == [
        OURS,
        TORCH,
        TORCH_FLOAT,
        COMPILED,
        AUTOTUNED,
    ]
    said = capsys.readouterr().err
    assert f"skipped {TORCH_LINEAR}: needs torch 2.13" in said
    assert f"skipped {CUT_COMPILED}: " in said  # needs its package alone
    for name in (LIGER, CUT, QUACK, FLA):
        assert f"skipped {name}: needs a CUDA device" in said


def row(provider, median_us, peak_bytes=None, **rest):
    """A result of llama2-batch in float32 on a machine that does not exist."""
    values = dict.fromkeys(results.columns(LinearResult), "x") | {
        "device": "cpu",
        "shape": "llama2-batch",
        "size": "4096x512x32000",
        "dtype": "float32",
        "work": WORK,
        "option": OPTION,
        "provider": provider,
        "status": results.OK,
        "detail": "",
        "median_us": median_us,
        "q1_us": median_us,
        "q3_us": median_us,
        "rounds": 7,
        "calls": 1,
        "others_share": 0.01,
        "peak_bytes": peak_bytes,
        "loss_error": 1e-7,
        "hidden_error": 2e-7,
        "head_target_error": 3e-7,
        "head_other_error": None,
        "products_us": 2e6,
    }
    return LinearResult(**values | rest)


WRONG = {"status": results.WRONG, "detail": "loss 1.0e+00"}
RESULTS = [
    row(OURS, 2.2e6, 100 << 20),
    row(TORCH, 3.3e6, 1000 << 20),
    row(COMPILED, 2.75e6),
    row(TORCH_LINEAR, None, **WRONG),
    row(TORCH_FLOAT, 4.4e6, 2000 << 20),
]


def test_budgets_that_are_met():
    (comparison,) = compare(RESULTS)
    assert comparison.over_products == pytest.approx(1.1)
    assert comparison.lead == pytest.approx(1.25)
    assert comparison.memory == pytest.approx(0.1)
    assert (comparison.met, comparison.lost) == (True, False)
    assert [promise.text for promise in comparison.judged] == [
        "≤ 1.15x products",
        "fastest",
        "memory ≤ 0.17x",
    ]


@pytest.mark.parametrize(
    ("broken", "ours", "rest"),
    [
        ("≤ 1.15x products", row(OURS, 2.4e6, 100 << 20), RESULTS[1:]),
        ("fastest", RESULTS[0], [*RESULTS[1:2], row(COMPILED, 2.1e6)]),
        ("memory ≤ 0.17x", row(OURS, 2.2e6, 200 << 20), RESULTS[1:]),
    ],
)
def test_budgets_that_are_missed(broken, ours, rest):
    (comparison,) = compare([ours, *rest])
    assert [promise.text for promise in comparison.judged if not promise.kept] == [broken]
    assert (comparison.met, comparison.lost) == (False, True)


def test_without_a_time_of_ours_every_budget_is_missed():
    (comparison,) = compare([row(OURS, None, **WRONG), *RESULTS[1:]])
    assert [promise.kept for promise in comparison.judged] == [False] * 3


def test_what_was_not_weighed_is_not_judged():
    (comparison,) = compare([row(OURS, 2.2e6), *RESULTS[1:]])
    assert [promise.text for promise in comparison.judged] == ["≤ 1.15x products", "fastest"]


def test_on_a_gpu_another_may_be_faster_within_the_budget():
    (comparison,) = compare(
        [
            dataclasses.replace(row(provider, time), device="cuda", shape="llama3-8b")
            for provider, time in ((OURS, 2.1e6), (LIGER, 2.0e6))
        ]
    )
    assert [str(promise) for promise in comparison.judged] == ["≤ 1.08x products: met"]
    assert comparison.lost


@pytest.fixture
def checkout(tmp_path):
    """A checkout with results of heads and two documents, rendered."""
    results.write(tmp_path / results.FOLDER / "linear-cpu-x-2-threads.csv", RESULTS, LinearResult)
    for path in (report.SUMMARY, report.FULL):
        markers = "\n\n".join(f"{part.begin}\n{part.end}" for part in report.PARTS)
        (tmp_path / path).write_text(f"Before.\n\n{markers}\n\nAfter.\n")
    report.write(tmp_path)
    return tmp_path


def test_results_survive_a_round_trip(checkout):
    (part,) = report.LINEAR.load(checkout)
    assert part.results == RESULTS


def test_report_shows_the_results_between_markers_of_their_own(checkout):
    assert report.stale(checkout) == []
    summary = (checkout / report.SUMMARY).read_text()
    line = "| 2.20 s | 1.10x | 3.30 s (1.50x) | 2.75 s (1.25x) | - | 100 / 1000 (0.10x) |"
    assert line in summary
    full = (checkout / report.FULL).read_text()
    assert "≤ 1.15x products: met; fastest: met; memory ≤ 0.17x: met" in full
    assert f"`{TORCH_LINEAR}` | wrong: loss 1.0e+00 |" in full
    assert "| 1e-07; 2e-07; 3e-07 |" in full
    everyone_else = f"| {TORCH_FLOAT} | 4.40 s | 2.00x | 0% | 2000 | 1e-07; 2e-07; 3e-07 |"
    assert everyone_else in full
    given_logits = "Not measured yet: `python -m bench logits` does."
    assert f"{report.LOGITS.begin}\n{given_logits}\n{report.LOGITS.end}" in summary


def test_without_results_the_report_says_so(checkout):
    (path,) = (checkout / results.FOLDER).iterdir()
    path.unlink()
    assert [stale.name for stale in report.stale(checkout)] == ["README.md", "README.md"]
    report.write(checkout)
    said = "Not measured yet: `python -m bench linear` does."
    assert f"{report.LINEAR.begin}\n{said}\n{report.LINEAR.end}" in (
        (checkout / report.SUMMARY).read_text()
    )


def test_check_rejects_a_number_typed_into_a_table(checkout):
    path = checkout / report.FULL
    path.write_text(path.read_text().replace("1.50x", "1.60x"))
    assert report.stale(checkout) == [path]


def test_the_command_measures_and_writes(monkeypatch, tmp_path):
    monkeypatch.setitem(SHAPES, "tiny", dataclasses.replace(TINY, devices=("cpu",)))
    monkeypatch.setattr(timing, "SAMPLE_MICROSECONDS", 1.0)
    monkeypatch.setattr(timing, "MAX_ROUNDS", timing.MIN_ROUNDS)
    path = tmp_path / "linear.csv"
    command = f"bench linear --shapes tiny --csv {path} --providers {OURS}".split()
    monkeypatch.setattr(sys, "argv", [*command, TORCH])
    assert __main__.main() == 0
    rows = results.read(path, LinearResult)
    assert [(each.dtype, each.provider) for each in rows] == [
        (dtype, name) for dtype in ("float32", "bfloat16") for name in (OURS, TORCH)
    ]
    assert {each.status for each in rows} == {results.OK}
    assert all(each.median_us > 0 and each.products_us > 0 for each in rows)
    assert all(each.head_other_error is not None for each in rows)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_provider_is_weighed_in_a_process_of_its_own():
    grown = memory.measure("linear", TORCH, "small", "float32", 1, [(WORK, OPTION)])
    assert set(grown) == {(WORK, OPTION)}


def test_a_gpu_report_shows_the_heads(tmp_path):
    (tmp_path / gpu_report.ENVIRONMENT).write_text("{}")
    results.write(tmp_path / "linear.csv", RESULTS, LinearResult)
    text = gpu_report.render(tmp_path, [], [])
    assert "## Linear" in text
    assert "3.30 s (1.50x)" in text
