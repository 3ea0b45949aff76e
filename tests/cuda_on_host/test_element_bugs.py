"""The kernels of the sigmoid losses with one mistake each: does their exercise see it?"""

import pytest
from cuda_on_host.build import why_not
from cuda_on_host.planted import Bug, run_with_bug

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
FILES = ["elements.cu", "operand.cuh", "totals.cuh"]
BUGS = {
    "lost_tail": Bug("operand.cuh", "+ elements - 1) / elements", ") / elements"),
    "lost_partial_sum": Bug("totals.cuh", "i < blocks", "i + 1 < blocks"),
    "ignored_elements_stay": Bug(
        "elements.cu", "counted >> i & 1 ? values[i] : Acc(0)", "values[i]"
    ),
    "copies_count": Bug("elements.cu", "if (chunk.holds(i) && !(", "if (!("),
    "wrong_stride": Bug("operand.cuh", "rest * operand.stride[0]", "rest * operand.stride[inner]"),
}


@pytest.mark.parametrize("name", BUGS)
def test_seen(name: str) -> None:
    result = run_with_bug(name, BUGS[name], FILES, "elements.cu", "exercise_elements.py")
    assert result.returncode != 0 and "AssertionError: (Case(" in result.stderr, result.stderr
