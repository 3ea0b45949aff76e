"""The package's kernels with one mistake each: does their exercise see it?"""

import subprocess
import sys

import pytest
from cuda_on_host.build import HERE, host_environment, why_not
from cuda_on_host.package import build_package
from cuda_on_host.planted import BUGS, ELEMENT_BUGS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


def run_exercise(name: str, mistake: int) -> subprocess.CompletedProcess:
    package = build_package("plain")
    environment = {"PYTHONPATH": str(package), "PLANTED_MISTAKE": str(mistake)}
    return subprocess.run(
        [sys.executable, str(HERE / name), "--quick"],
        cwd=package,
        env=host_environment("plain") | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("exercise", ["exercise.py", "exercise_elements.py"])
def test_without_a_mistake(exercise: str) -> None:
    result = run_exercise(exercise, 0)
    assert result.returncode == 0 and "problems agree" in result.stdout, result.stderr


@pytest.mark.parametrize("name", BUGS)
def test_seen(name: str) -> None:
    exercise, failure = "exercise.py", "AssertionError: ("
    if name in ELEMENT_BUGS:
        exercise, failure = "exercise_elements.py", "AssertionError: (Case("
    result = run_exercise(exercise, 1 + list(BUGS).index(name))
    assert result.returncode != 0 and failure in result.stderr, result.stderr
