"""The whole extension with its CUDA kernels, built and loaded without a GPU, beside any torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


def fast_compile() -> dict[str, str]:
    """Where nvcc knows how to: a fifteenth of the time, for code that nobody executes here."""
    known = subprocess.run(["nvcc", "--help"], capture_output=True, text=True).stdout
    return {"NVCC_APPEND_FLAGS": "-Ofc max"} if "--Ofast-compile" in known else {}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA toolkit")
def test_builds_and_loads() -> None:
    folder = ROOT / "build" / "with_cuda"
    built = setup(folder, TORCHCE_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0", **fast_compile())
    assert built.returncode == 0, (built.stdout + built.stderr)[-5000:]
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
