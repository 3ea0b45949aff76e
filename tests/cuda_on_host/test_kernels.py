"""The CUDA kernels, executed on the host: against float64, in every order, under sanitizers."""

import pytest
from cuda_on_host.build import HERE, why_not
from cuda_on_host.package import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


def exercise(kind: str, *arguments: str, **environment: str) -> None:
    assert "problems agree" in run([str(HERE / "exercise.py"), *arguments], kind, **environment)


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_orders(order: str) -> None:
    """Besides `forward`, in which test_planted.py has them agree."""
    exercise("plain", *([] if order == "random" else ["--quick"]), CUDA_ON_HOST_ORDER=order)


def test_before_clusters() -> None:
    """Architecture 8.0: long rows are read twice."""
    exercise("plain", "--long", CUDA_ON_HOST_ARCHITECTURE="80")


@pytest.mark.parametrize("kind", ["address", "thread"])
def test_sanitizers(kind: str) -> None:
    exercise(kind, "--quick")
