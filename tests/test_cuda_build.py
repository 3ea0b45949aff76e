"""The whole extension with its CUDA kernels, built and loaded without a GPU, beside any torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import resource_gate as gate

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import torch, torchce_cuda
from torchce_cuda import _C
assert _C.build_info()["cuda"]
for name in ("forward", "backward", "backward_", "forward_backward", "forward_backward_"):
    operator = f"torchce::cross_entropy_{name}"
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(operator, key), (operator, key)
logits = torch.randn(4, 5, requires_grad=True)
torchce_cuda.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
torchce_cuda.check_targets()  # where there is no device, nothing is asked of one
print("loaded", torchce_cuda.__file__)
"""


def setup(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", folder, "--build-temp", folder],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


NEEDS_NVCC = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA toolkit")
FOLDER = ROOT / "build" / "with_cuda"


@pytest.fixture(scope="module")
def report() -> str:
    """What the compilers said of a build for sm_90; an earlier one where nothing has changed."""
    said = FOLDER / f"said-{gate.sources_digest()}.txt"
    if not said.is_file():  # ninja would compile, and report, a part of it
        shutil.rmtree(FOLDER, ignore_errors=True)
    built = setup(
        FOLDER,
        TORCHCE_CUDA="1",
        TORCH_CUDA_ARCH_LIST="9.0",
        NVCC_APPEND_FLAGS="-Xptxas -v",
    )
    assert built.returncode == 0, (built.stdout + built.stderr)[-5000:]
    if not said.is_file():
        said.write_text(built.stdout + built.stderr)
    return said.read_text()


@pytest.mark.slow
@NEEDS_NVCC
def test_the_record_is_of_these_kernels(report: str) -> None:
    """What the budget is held against, as far as this compiler can say."""
    budget = gate.read_budget()
    record, recorded = gate.read_record()
    kernels = gate.parse(report, 90)
    assert gate.violations(kernels, budget) == []
    if record["nvcc"] == gate.nvcc_version().splitlines()[-1]:
        assert sorted(kernels) == [kernel for kernel in recorded if kernel.architecture == 90]


@pytest.mark.slow
@NEEDS_NVCC
def test_builds_and_loads(report: str) -> None:
    folder = FOLDER
    package = folder / "torchce_cuda"
    for source in (ROOT / "torchce_cuda").glob("*.py"):
        (package / source.name).write_text(source.read_text())
    loaded = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == ["loaded", str(package / "__init__.py")]


def test_a_wrong_switch_fails_loudly(tmp_path: Path) -> None:
    failed = setup(tmp_path, TORCHCE_CUDA="yes")
    assert failed.returncode != 0
    assert "TORCHCE_CUDA is 'yes', but must be 0 or 1" in failed.stderr
