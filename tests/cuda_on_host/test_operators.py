"""The package's own tests, with the CUDA kernels, executed on the host, behind its operators."""

import os
from pathlib import Path

import pytest
from cuda_on_host.build import HERE, ROOT, why_not
from cuda_on_host.package import build_package, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
SUITE = ["determinism", "errors", "gradcheck", "inplace", "layout", "targets"]
SUITE += ["focal_series", "linear", "sigmoid", "torch_api"]
# what the kernels have no part in: a compiler sees operators, planted mistakes are a test's, and a
# schema is the same for every dtype
LEFT_OUT = "compile or planted or (opcheck and not f32)"


@pytest.mark.parametrize("name", SUITE)
def test_behind_the_operators(name: str) -> None:
    """Their CPU tensors on the CUDA route."""
    path = Path(ROOT, "tests", f"test_{name}.py")
    settings = ["-p", "checks_package", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    settings += ["-o", f"pythonpath={build_package('plain')} {ROOT}", "-p", "no:cacheprovider"]
    output = run(
        ["-m", "pytest", "-q", *settings, "-k", f"not ({LEFT_OUT})", str(path)],
        "plain",
        PYTHONPATH=os.pathsep.join([str(build_package("plain")), str(HERE)]),
    )
    assert " passed" in output
