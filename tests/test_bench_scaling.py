"""The benchmark of growing problems: its series, and the exponents that it reports."""

import pytest
import torch

from bench import report, results
from bench.linear.cases import LinearShape
from bench.problem import Problem
from bench.providers import OURS, TORCH
from bench.results import LinearResult
from bench.scaling.cases import LINEAR_SERIES, LOGITS_SERIES, OCTAVES
from bench.scaling.fit import fit
from bench.scaling.tables import compare_heads, growths

LINEAR_ROWS = LINEAR_SERIES[0]


def test_a_power_is_found_exactly():
    found = fit({size: 3.0 * size**1.5 for size in (1, 2, 4, 8)})
    assert (found.exponent, found.error) == pytest.approx((1.5, 0.0), abs=1e-12)


def test_the_error_is_that_of_the_slope():
    # Logarithms to base 2: sizes 0, 1, 2, 3 and times 0, 2, 1, 3. By hand: slope 4 / 5, residuals
    # -0.3, 0.9, -0.9, 0.3 whose squares sum to 1.8, error sqrt(1.8 / 2 / 5).
    found = fit({1: 1.0, 2: 4.0, 4: 2.0, 8: 8.0})
    assert found.exponent == pytest.approx(0.8)
    assert found.error == pytest.approx(0.18**0.5)
    assert str(found) == "0.80 ± 0.42"


def test_two_points_fit_nothing():
    assert fit({1: 1.0, 2: 2.0}) is None


@pytest.mark.parametrize("series", [*LOGITS_SERIES, *LINEAR_SERIES], ids=str)
def test_a_series_doubles_one_number_and_leaves_the_others(series):
    sizes = [shape.size for shape in series.shapes]
    grown = [series.size(shape.name) for shape in series.shapes]
    assert [size / grown[0] for size in grown] == [2**octave for octave in range(OCTAVES + 1)]
    rest = {(*size[: series.index], *size[series.index + 1 :]) for size in sizes}
    assert len(rest) == 1
    assert grown == [
        getattr(shape, {"rows": "rows", "classes": "cols"}[series.grows]) for shape in series.shapes
    ]


def test_heads_stay_heads():
    assert all(isinstance(shape, LinearShape) for shape in LINEAR_ROWS.shapes)
    assert len(LINEAR_ROWS.shapes[0].inputs) == 2
    assert Problem(LINEAR_ROWS.shapes[0], torch.float32).logits_bytes == 128 * 32000 * 4


def rows(provider, microseconds_per_row, exponent, bytes_per_row):
    """Results of all heads of a series, on a machine that does not exist."""
    for shape in LINEAR_ROWS.shapes:
        time = microseconds_per_row * shape.rows**exponent
        values = dict.fromkeys(results.columns(LinearResult), "x") | {
            "device": "cpu",
            "shape": shape.name,
            "size": shape.label,
            "dtype": "float32",
            "work": "forward_backward",
            "option": "plain",
            "provider": provider,
            "status": results.OK,
            "median_us": time,
            "q1_us": time,
            "q3_us": time,
            "rounds": 7,
            "calls": 1,
            "others_share": 0.0,
            "peak_bytes": bytes_per_row * shape.rows,
            "products_us": 1.0,
            "loss_error": 0.0,
            "hidden_error": 0.0,
            "head_target_error": 0.0,
            "head_other_error": 0.0,
        }
        yield LinearResult(**values)


MEASURED = [*rows(OURS, 100.0, 1.0, 1 << 16), *rows(TORCH, 50.0, 1.25, 1 << 18)]


def test_growth_is_that_of_each_provider():
    (growth,) = growths(compare_heads(MEASURED))
    assert growth.title == "128 to 4096 rows, float32, forward + backward"
    assert growth.times(OURS)[256] == pytest.approx(25_600)
    assert growth.memory(TORCH)[4096] == 1 << 30


def test_the_report_shows_exponents_times_and_memory(tmp_path):
    path = tmp_path / "linear-cpu-x-2-threads.csv"
    results.write(path, MEASURED, LinearResult)
    assert report.LINEAR.read(path).results == []
    shown = report.LINEAR_SCALING.read(path)
    text = report.LINEAR_SCALING.full(shown, tmp_path)
    line = "| 128 to 4096 rows, float32, forward + backward | 1.00 ± 0.00 | 1.25 ± 0.00 |"
    assert line in text
    assert line in report.LINEAR_SCALING.summary(shown)
    assert "| rows-4096x256x32000 | 4096x256x32000 | float32 | 256 | 1024 |" in text
    (plot,) = report.draw(shown)
    assert plot.name == "linear-cpu-x-2-threads-growth.png"
    assert shown.digest.encode() in plot.read_bytes()
