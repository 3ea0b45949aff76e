"""Builds two extensions.

`_ops_library`  the operators on the LibTorch stable ABI: one binary for every torch >= 2.10
`_C`            pybind11: build information and test hooks, no tensors

TORCHCE_CUDA=0|1 overrides whether the CUDA kernels are built: by default where there is a CUDA
toolkit and torch is a CUDA build; with 1 also beside a CPU build of torch, where they compile and
load, for tests; and it fails loudly without a toolkit. TORCH_CUDA_ARCH_LIST says for which devices.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pybind11
import torch
from setuptools import setup
from torch.utils import cpp_extension

CPU_SOURCES = [
    "csrc/ops.cpp",
    "csrc/cpu/ops_cpu.cpp",
    "csrc/cpu/kernels.cpp",
    "csrc/cpu/rows.cpp",
    "csrc/cpu/positions.cpp",
    "csrc/cpu/elements.cpp",
    "csrc/cpu/simd.cpp",
]
CUDA_SOURCES = [
    "csrc/cuda/ops_cuda.cpp",
    "csrc/cuda/backend.cpp",
    "csrc/cuda/runtime.cpp",
    "csrc/cuda/plan.cpp",
    "csrc/cuda/capability.cu",
    "csrc/cuda/resident.cu",
    "csrc/cuda/streaming.cu",
    "csrc/cuda/backward.cu",
    "csrc/cuda/summary.cu",
    "csrc/cuda/scale.cu",
    "csrc/cuda/elements.cu",
]
BINDING_SOURCES = ["csrc/bindings.cpp", "csrc/cpu/simd.cpp", "csrc/cuda/plan.cpp"]

TARGET_TORCH = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# Errno and traps would forbid vectorising exp and selects; the simd pragmas need no OpenMP runtime.
CXX_FLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
CXX_FLAGS += ["-fopenmp-simd"]


CUDA_LIBRARIES = ["lib64", "lib", "targets/x86_64-linux/lib"]  # where packages of CUDA put them
NVCC_FLAGS = ["-O3", "-lineinfo", "-Xcompiler", "-fvisibility=hidden"]


def cuda_home() -> Path | None:
    """The folder of the CUDA toolkit."""
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), cpp_extension.CUDA_HOME]
    places += [nvcc and Path(nvcc).resolve().parent.parent, Path("/usr", "local", "cuda")]
    for place in filter(None, places):
        if Path(place, "bin", "nvcc").is_file() and Path(place, "include", "cuda.h").is_file():
            return Path(place)
    return None


def with_cuda() -> bool:
    """Whether to build the CUDA kernels: a question to toolkit and torch, never to a GPU."""
    wanted = os.environ.get("TORCHCE_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"TORCHCE_CUDA is {wanted!r}, but must be 0 or 1")
    if wanted == "1" and cuda_home() is None:
        raise SystemExit(
            "TORCHCE_CUDA=1, but there is no CUDA toolkit: no bin/nvcc and include/cuda.h in "
            "CUDA_HOME, beside the nvcc on PATH or in the usual place"
        )
    return wanted == "1" or (wanted != "0" and torch.version.cuda and cuda_home() is not None)


def prepare_nvcc() -> Path:
    """Tells torch's build tools what they do not find out for themselves."""
    home = cuda_home()
    output = subprocess.check_output([home / "bin" / "nvcc", "--version"], text=True)
    version = re.search(r"release (\d+)\.(\d+)", output)
    cpp_extension.CUDA_HOME = str(home)  # a CPU build of torch looks for neither of these
    torch.version.cuda = torch.version.cuda or f"{version[1]}.{version[2]}"
    if not torch.cuda.is_available():  # torch would ask the GPU
        devices = ["7.5", "8.0", "8.6", "8.9", "9.0"]
        if (int(version[1]), int(version[2])) >= (12, 8):
            devices += ["10.0", "12.0"]
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", " ".join(devices) + "+PTX")
    return home


cuda = bool(with_cuda())
home = prepare_nvcc() if cuda else None
ops_library = cpp_extension.CppExtension(
    "torchce_cuda._ops_library",
    CPU_SOURCES + (CUDA_SOURCES if cuda else []),
    py_limited_api=True,
    include_dirs=[str(home / "include")] if cuda else [],
    library_dirs=[str(home / folder) for folder in CUDA_LIBRARIES] if cuda else [],
    libraries=["cudart_static", "rt", "dl"] if cuda else [],
    extra_compile_args={"cxx": [*CXX_FLAGS, TARGET_TORCH], "nvcc": NVCC_FLAGS},
    # libtorch by name, so that what only CUDA builds of torch have can be looked up at run time
    extra_link_args=["-Wl,--no-as-needed,-ltorch,--as-needed"],
)
bindings = cpp_extension.CppExtension(
    "torchce_cuda._C",
    BINDING_SOURCES,
    include_dirs=[pybind11.get_include()],
    extra_compile_args={"cxx": [*CXX_FLAGS, f"-DTORCHCE_WITH_CUDA={int(cuda)}"]},
)

setup(
    ext_modules=[ops_library, bindings],
    cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(use_ninja=True)},
)
