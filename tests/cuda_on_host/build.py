"""Compiles kernels (.cu) and what calls them (.cpp) with g++, for execution on the CPU.

build_host_library(sources, kind)   a shared library, from the cache where nothing has changed
host_environment(kind)              what a process needs that loads it
why_not()                           why none of this can be done here, or None
"""

import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "build" / "cuda_on_host"
RUNTIME = HERE / "runtime.cpp"
KERNEL_HEADER = HERE / "device_on_host.h"

COMPILER = os.environ.get("CXX", "g++")
# No fused multiply-adds but those that are written; reads of a float4 through a uint4 are common
# in kernels and defined by nvcc.
FLAGS = ["-std=c++20", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-ftls-model=global-dynamic"]
FLAGS += ["-fno-math-errno", "-ffp-contract=off", "-fno-strict-aliasing", "-fopenmp-simd"]
FLAGS += [f"-ffile-prefix-map={ROOT}/=", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
# Optimised so that compiling and executing take the least, on two cores. Sanitizers, the quick
# exercise: 64 s at -O0 and 132 s at -O1 with AddressSanitizer, whose checks are calls, 69 s and
# 68 s with ThreadSanitizer. Plain: 89 s of compiling at -O2, 52 s at -O1 without debug information,
# 31 s at -O0; then tests that took 76 s at -O2 take 80 s at -O1 and more than twice that at -O0.
# The other checks of `undefined` would find what AddressSanitizer finds as well.
SANITIZER = {
    "plain": ["-O1", "-g0"],
    "address": [
        "-O0",
        "-fsanitize=address,alignment,bounds,signed-integer-overflow,shift,integer-divide-by-zero",
        "-fsanitize-recover=all",
        "--param=asan-instrumentation-with-call-threshold=0",
    ],
    "thread": ["-O1", "-fsanitize=thread"],
}
LIBRARY = {"address": "libasan.so", "thread": "libtsan.so"}


@functools.cache
def cuda_include() -> Path | None:
    """The folder of the toolkit's headers: nvcc's, CUDA_HOME's, the usual one, or pip's."""
    nvcc = shutil.which("nvcc")
    folders = [Path("/usr", "local", "cuda", "include")]
    if "CUDA_HOME" in os.environ:
        folders.insert(0, Path(os.environ["CUDA_HOME"], "include"))
    if nvcc:
        dry_run = subprocess.run(
            [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True
        )
        for line in dry_run.stderr.splitlines():  # nvcc may be a script: ask it where it lives
            if line.startswith("#$ TOP="):
                folders.insert(0, Path(line.removeprefix("#$ TOP="), "include"))
    nvidia = Path(sysconfig.get_path("purelib"), "nvidia")
    folders += [nvidia / "cuda_runtime" / "include", *sorted(nvidia.glob("cu*/include"))]
    needed = ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h")
    for folder in folders:
        if all((folder / header).is_file() for header in needed):
            return folder.resolve()
    return None


@functools.cache
def compiler_version() -> str:
    return subprocess.run([COMPILER, "--version"], capture_output=True, text=True).stdout


def why_not() -> str | None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "kernels run on the CPU only on Linux x86-64"
    if shutil.which(COMPILER) is None:
        return f"needs {COMPILER}"
    if "Free Software Foundation" not in compiler_version():
        return f"needs GCC, {COMPILER} is another compiler"
    if cuda_include() is None:
        return "needs the CUDA toolkit's headers"
    return None


def digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:20]


def headers_near(source: Path) -> list[Path]:
    """Whatever a source might include: cheaper than asking the compiler what it does."""
    found = {*(ROOT / "csrc").rglob("*"), *HERE.iterdir(), *source.parent.iterdir()}
    return sorted(path for path in found if path.suffix in {".h", ".cuh"})


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")


def _produce(target: Path, command: list[str]) -> Path:
    """Runs the command on a name of its own: another process may build the same file."""
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(f".{os.getpid()}{target.suffix}")
        _run([*command, "-o", str(draft)])
        draft.replace(target)
    return target


def cached_text(kind: str, inputs: Sequence[object], produce: Callable[[], str]) -> str:
    """What `produce` returned for the same inputs before, or returns now."""
    target = CACHE / f"{kind}-{digest(*inputs)}.txt"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(f".{os.getpid()}")
        draft.write_text(produce())
        draft.replace(target)
    return target.read_text()


@contextmanager
def _alone(library: Path) -> Iterator[None]:
    """One process compiles a library; who waits finds it."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _object(source: Path, kind: str, extra_flags: Sequence[str], cache: Path) -> Path:
    command = [COMPILER, *FLAGS, *extra_flags, f"-I{HERE}", "-isystem", str(cuda_include())]
    if source == RUNTIME:  # its data are not the kernels': no sanitizer looks at them
        command += [] if kind == "plain" else [f"-DCUDA_ON_HOST_{kind.upper()}"]
    else:
        command += SANITIZER[kind]
    if source.suffix == ".cu":
        command += ["-x", "c++", "-include", str(KERNEL_HEADER)]
    texts = [path.read_text() for path in [source, *headers_near(source)]]
    name = f"{source.stem}-{digest(compiler_version(), *command, source, *texts)}.o"
    return _produce(cache / name, [*command, "-c", str(source)])


def build_host_library(
    sources: Sequence[Path],
    kind: str = "plain",
    extra_flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
    cache: Path = CACHE,
) -> Path:
    """A shared library of the sources and the runtime that executes their kernels.

    kind: "plain", "address" (and undefined behaviour) or "thread", the sanitizer to compile with.
    extra_flags go to each compilation, link_flags to the link.
    """
    sources = [RUNTIME, *(Path(source).resolve() for source in sources)]
    with _alone(cache / f"{kind}-{digest(*sources, *extra_flags, *link_flags)}"):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(
                pool.map(lambda source: str(_object(source, kind, extra_flags, cache)), sources)
            )
        name = f"lib{kind}-{digest(*objects, *link_flags)}.so"
        command = [COMPILER, "-shared", *SANITIZER[kind], *objects, *link_flags, "-ldl"]
        return _produce(cache / name, command)


def host_environment(kind: str, halt: bool = True) -> dict[str, str]:
    """The environment of a process that loads a library of this kind.

    halt: the first report ends the process. Otherwise it goes on, and every report is printed.
    """
    environment = dict(os.environ)
    if kind in LIBRARY:
        library = subprocess.run(
            [COMPILER, f"-print-file-name={LIBRARY[kind]}"], capture_output=True, text=True
        ).stdout.strip()
        environment["LD_PRELOAD"] = library
    halt_on_error = f"halt_on_error={int(halt)}"
    environment["ASAN_OPTIONS"] = f"{halt_on_error}:detect_leaks=0"
    environment["UBSAN_OPTIONS"] = f"{halt_on_error}:print_stacktrace=1"
    # Python and PyTorch are not compiled for TSan, and their locks are not its business. One block
    # has its shared memory where an earlier one had it: the same address is not the same race.
    environment["TSAN_OPTIONS"] = (
        f"{halt_on_error}:ignore_noninstrumented_modules=1:suppress_equal_addresses=0"
    )
    return environment
