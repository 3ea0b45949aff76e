"""The package's kernels with one mistake each: does their exercise see it?"""

from pathlib import Path

import pytest
from cuda_on_host.build import why_not
from cuda_on_host.planted import Bug, build_with, run_exercise

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
ROW_BUGS = {
    "classes_behind_the_row_count": Bug(
        "cuda/row.cuh", "i < left ? z[k][i] : with", "i <= left ? z[k][i] : with"
    ),
    "what_is_left_out_is_a_tie": Bug(
        "cuda/row.cuh",
        "mul_add(ties - Acc(left_out), exp_nonpos(max - reference), pass.row.sum)",
        "mul_add(ties, exp_nonpos(max - reference), pass.row.sum)",
    ),
    "no_packet_behind_a_group": Bug("cuda/row_view.cuh", "row.shift != 0", "row.shift < 0"),
    "half_words_are_not_cut": Bug("cuda/row_view.cuh", "half ? 16 : 0", "0"),
    "old_ties_are_lost": Bug("row_math.h", "moves ? sums.focal.top : Acc(0)", "Acc(0)"),
}
ELEMENT_BUGS = {
    "lost_tail": Bug(
        "cuda/operand.cuh",
        "(problem.inner_size() + elements - 1) / elements",
        "problem.inner_size() / elements",
    ),
    "lost_partial_sum": Bug("cuda/totals.cuh", "i < blocks", "i + 1 < blocks"),
    "ignored_elements_stay": Bug(
        "cuda/elements.cu", "counted >> i & 1 ? values[i] : Acc(0)", "values[i]"
    ),
    "copies_count": Bug(
        "cuda/elements.cu",
        "chunk.holds(i) && !(t[i] == work.options.ignored)",
        "!(t[i] == work.options.ignored)",
    ),
    "wrong_stride": Bug(
        "cuda/operand.cuh", "rest * operand.stride[0]", "rest * operand.stride[inner]"
    ),
}
BUGS = ROW_BUGS | ELEMENT_BUGS


@pytest.fixture(scope="module")
def package() -> Path:
    return build_with(list(BUGS.values()))


@pytest.mark.parametrize("exercise", ["exercise.py", "exercise_elements.py"])
def test_without_a_mistake(package: Path, exercise: str) -> None:
    result = run_exercise(package, exercise, 0)
    assert result.returncode == 0 and "problems agree" in result.stdout, result.stderr


@pytest.mark.parametrize("name", BUGS)
def test_seen(package: Path, name: str) -> None:
    exercise, failure = "exercise.py", "AssertionError: ("
    if name in ELEMENT_BUGS:
        exercise, failure = "exercise_elements.py", "AssertionError: (Case("
    result = run_exercise(package, exercise, 1 + list(BUGS).index(name))
    assert result.returncode != 0 and failure in result.stderr, result.stderr
