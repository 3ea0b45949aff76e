"""`torchce_cuda` with the CUDA kernels, executed on the CPU, behind its operators.

build_package(kind)   a folder to put first on PYTHONPATH
run(command, kind)    what a Python process printed that imports it
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

from .build import CACHE, HERE, ROOT, build_host_library, host_environment
from .planted import plant

SOURCES = ["ops.cpp", "cuda/backend.cpp", "cuda/plan.cpp", "cuda/resident.cu", "cuda/streaming.cu"]
SOURCES += ["cuda/backward.cu", "cuda/summary.cu", "cuda/scale.cu", "cuda/elements.cu"]


def build_library(kind: str) -> Path:
    """Of the package's code under a sanitizer; the plain library, which executes much and is
    compiled once, has the planted mistakes in it and makes none unless it is told to."""
    csrc = plant() if kind == "plain" else ROOT / "csrc"
    torch_folder = Path(torch.__file__).parent
    include = torch_folder / "include"
    flags = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(include)]
    flags += ["-isystem", str(include / "torch" / "csrc" / "api" / "include")]
    flags += ["-isystem", sysconfig.get_path("include")]
    link = [f"-L{torch_folder / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
    sources = [*(csrc / source for source in SOURCES), HERE / "ops_on_host.cpp"]
    return build_host_library(sources, kind, flags, link)


def build_package(kind: str) -> Path:
    folder = CACHE / f"package-{kind}-{sys.implementation.cache_tag}"
    package = folder / "torchce_cuda"
    package.mkdir(parents=True, exist_ok=True)
    for source in (ROOT / "torchce_cuda").iterdir():
        if source.suffix in {".py", ".so"} and not source.name.startswith("_ops_library"):
            _put(source, package / source.name)
    _put(build_library(kind), package / "_ops_library.abi3.so")
    return folder


def _put(source: Path, target: Path) -> None:
    """Another process may have loaded the target: it keeps what it has."""
    draft = target.with_suffix(f".{os.getpid()}")
    shutil.copy2(source, draft)
    draft.replace(target)


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
