"""The kernels of cross entropy with one mistake each: does their exercise see it?"""

import pytest
from cuda_on_host.build import why_not
from cuda_on_host.planted import Bug, run_with_bug

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
FILES = ["resident.cu", "finish.cuh", "row.cuh", "row_view.cuh", "team.cuh"]
FILES += ["launch.h", "storage.cuh", "../row_access.h", "../dispatch.h", "../problem.h"]
FILES += ["../element_problem.h", "../row_math.h", "plan.h"]
BUGS = {
    "classes_behind_the_row_count": Bug(
        "row.cuh", "z[k][i] = i < left ? z[k][i] : with", "z[k][i] = i <= left ? z[k][i] : with"
    ),
    "what_is_left_out_is_a_tie": Bug(
        "row.cuh", "mul_add(ties - Acc(left_out), exp_nonpos", "mul_add(ties, exp_nonpos"
    ),
    "no_packet_behind_a_group": Bug(
        "row_view.cuh", "if (row.shift != 0) fetch_behind(", "if (row.shift < 0) fetch_behind("
    ),
    "half_words_are_not_cut": Bug("row_view.cuh", "half ? 16 : 0", "half ? 0 : 0"),
    "old_ties_are_lost": Bug("row_math.h", "moves ? sums.focal.top : Acc(0);", "Acc(0);"),
}


@pytest.mark.parametrize("name", BUGS)
def test_seen(name: str) -> None:
    result = run_with_bug(name, BUGS[name], FILES, "resident.cu", "exercise.py")
    assert result.returncode != 0 and "AssertionError: (" in result.stderr, result.stderr
