"""Builds two extensions.

`_ops_library`  the operators on the LibTorch stable ABI: one binary for every torch >= 2.10
`_C`            pybind11: build information and test hooks, no tensors

TORCHCE_CUDA=0|1 overrides whether the CUDA kernels are built (1 fails loudly where they cannot be).
"""

import os

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
    "csrc/cpu/simd.cpp",
]
CUDA_SOURCES: list[str] = []
BINDING_SOURCES = ["csrc/bindings.cpp", "csrc/cpu/simd.cpp"]

TARGET_TORCH = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# Errno and traps would forbid vectorising exp and selects; the simd pragmas need no OpenMP runtime.
CXX_FLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
CXX_FLAGS += ["-fopenmp-simd"]


def with_cuda() -> bool:
    """Whether to build the CUDA kernels: a question to toolkit and torch, never to a GPU."""
    wanted = os.environ.get("TORCHCE_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"TORCHCE_CUDA is {wanted!r}, but must be 0 or 1")
    possible = bool(CUDA_SOURCES) and bool(cpp_extension.CUDA_HOME) and bool(torch.version.cuda)
    if wanted == "1" and not possible:
        raise SystemExit(
            "TORCHCE_CUDA=1, but the CUDA kernels cannot be built: "
            f"kernels in this version: {bool(CUDA_SOURCES)}, "
            f"CUDA toolkit: {cpp_extension.CUDA_HOME}, CUDA of torch: {torch.version.cuda}"
        )
    return possible and wanted != "0"


cuda = with_cuda()
ops_library = cpp_extension.CppExtension(
    "torchce_cuda._ops_library",
    CPU_SOURCES + (CUDA_SOURCES if cuda else []),
    py_limited_api=True,
    extra_compile_args={"cxx": [*CXX_FLAGS, TARGET_TORCH]},
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
