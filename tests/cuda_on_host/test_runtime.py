"""What csrc/cuda/runtime.cpp makes of the CUDA runtime's answers."""

import subprocess
from pathlib import Path

import pytest
import torch
from cuda_on_host.build import COMPILER, HERE, ROOT, cuda_include, why_not


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_answers(tmp_path: Path) -> None:
    program = tmp_path / "runtime_answers"
    sources = [HERE / "runtime_answers.cpp", ROOT / "csrc" / "cuda" / "runtime.cpp"]
    include = [
        "-isystem",
        str(cuda_include()),
        "-isystem",
        str(Path(torch.__file__).parent / "include"),
    ]
    subprocess.run([COMPILER, "-std=c++20", *include, *sources, "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.stdout == "as expected\n", run.stdout + run.stderr
