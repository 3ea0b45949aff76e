"""Seeds, devices and markers."""

import os
import tempfile
from collections.abc import Iterator

import pytest
import torch
from accuracy import on_one_thread

import torchce_cuda


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU and a build with its kernels")
    config.addinivalue_line("markers", "xdist_group(name): one process runs all of a group")
    config.addinivalue_line("markers", "slow: takes more than a few seconds")
    # The compiler's own cache does not know the operators' schemas: what it compiled for another
    # version of them would be called with other arguments.
    cache = tempfile.TemporaryDirectory(prefix="torchce-inductor-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache.name
    config.add_cleanup(cache.cleanup)


def _devices() -> list:
    has_kernels = torch._C._dispatch_has_kernel_for_dispatch_key(
        "torchce::cross_entropy_forward", "CUDA"
    )
    if torch.cuda.is_available() and has_kernels:
        return ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
    return ["cpu"]


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def on_each_device(device: torch.device) -> Iterator[None]:
    """Where tensors lie that a test makes without saying where."""
    with device:
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def targets_checked_at_once() -> None:
    """On a GPU too a bad target raises at the call; `test_targets.py` has the other mode."""
    torchce_cuda.check_targets(True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests of many small PyTorch operations."""
    with on_one_thread():
        yield
