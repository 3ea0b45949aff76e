"""The CUDA kernels, executed on the host: against float64, in every order, under sanitizers, behind
the operators."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_on_host.build import HERE, ROOT, host_environment, why_not
from cuda_on_host.package import build_package

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
SUITE = ["accuracy", "determinism", "errors", "gradcheck", "inplace", "layout", "targets"]
SUITE += ["focal_series", "linear", "sigmoid", "torch_api"]


def run(command: list[str], kind: str, **environment: str) -> str:
    package = build_package(kind)
    result = subprocess.run(
        [sys.executable, *command],
        cwd=package,
        env=host_environment(kind) | {"PYTHONPATH": str(package)} | environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-5000:]
    return output


def exercise(kind: str, *arguments: str, **environment: str) -> None:
    assert "problems agree" in run([str(HERE / "exercise.py"), *arguments], kind, **environment)


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_orders(order: str) -> None:
    exercise("plain", *([] if order == "random" else ["--quick"]), CUDA_ON_HOST_ORDER=order)


def test_before_clusters() -> None:
    """Architecture 8.0: long rows are read twice."""
    exercise("plain", CUDA_ON_HOST_ARCHITECTURE="80")


@pytest.mark.parametrize("kind", ["address", "thread"])
def test_sanitizers(kind: str) -> None:
    exercise(kind, "--quick")


@pytest.mark.parametrize("name", SUITE)
def test_behind_the_operators(name: str) -> None:
    """The package's own tests, their CPU tensors on the CUDA route."""
    path = Path(ROOT, "tests", f"test_{name}.py")
    settings = ["-p", "checks_package", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    settings += ["-o", f"pythonpath={build_package('plain')} {ROOT}", "-p", "no:cacheprovider"]
    output = run(
        ["-m", "pytest", "-q", *settings, str(path)],
        "plain",
        PYTHONPATH=os.pathsep.join([str(build_package("plain")), str(HERE)]),
    )
    assert " passed" in output
