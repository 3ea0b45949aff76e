"""pytest plugin: the tests that follow must meet the package with the kernels on the host."""

import torchce_cuda


def pytest_configure() -> None:
    assert "cuda_on_host" in torchce_cuda.__file__, torchce_cuda.__file__
