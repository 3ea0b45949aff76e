"""One build serves every torch: the package as it was built here, loaded and run by the oldest and
by the newest torch that it is meant for.

    make load-test     (it downloads three torch wheels of 0.5 GB each)

Where test_cuda_build.py has built the package with its CUDA kernels, it is that build.

Each torch gets a virtual environment of its own for as long as its test takes. The CUDA libraries
that torch's wheels are linked with, gigabytes that a test without a GPU has no use for, give way to
hollow ones of the same names: enough to import torch and to run it on the CPU.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILDS = [ROOT / "build" / "with_cuda", ROOT]
MATRIX = [("3.10", "torch==2.10.*"), ("3.12", "torch==2.11.*"), ("3.13", "torch<2.16")]
NEEDED_BY_TORCH = [
    "filelock",
    "fsspec",
    "jinja2",
    "networkx",
    "numpy",
    "sympy",
    "typing-extensions",
]

PROBE = """
import platform, torch, torch.nn.functional as F, torchce_cuda

torch.manual_seed(0)
for dtype in (torch.float64, torch.float32, torch.bfloat16):
    logits = (4 * torch.randn(64, 5003)).to(dtype)
    target = torch.randint(5003, (64,))
    weight = torch.rand(5003).to(dtype)

    def loss_and_gradient(cross_entropy, logits, **options):
        logits = logits.clone().requires_grad_()
        loss = cross_entropy(1 * logits, target, weight.to(logits), **options)
        loss.backward()
        return loss.detach().double(), logits.grad.double()

    expected = loss_and_gradient(F.cross_entropy, logits.double())
    for inplace in (False, True):
        got = loss_and_gradient(torchce_cuda.cross_entropy, logits, inplace=inplace)
        torch.testing.assert_close(got, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)

    def linear(dtype, loss):
        hidden, head = (x.to(dtype).requires_grad_() for x in inputs)
        loss = loss(hidden, head, target)
        loss.backward()
        return loss.detach().double(), hidden.grad.double(), head.grad.double()

    inputs = torch.randn(64, 32), torch.randn(5003, 32) / 8
    expected = linear(torch.float64, lambda x, w, t: F.cross_entropy(F.linear(x, w), t))
    got = linear(dtype, torchce_cuda.linear_cross_entropy)
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
kernels = torch._C._dispatch_has_kernel_for_dispatch_key("torchce::scale_", "CUDA")
print(f"ok: Python {platform.python_version()}, torch {torch.__version__}, {kernels=}")
"""


def main() -> None:
    package = next(build for build in BUILDS if (build / "torchce_cuda").is_dir())
    for python, torch in MATRIX:
        with tempfile.TemporaryDirectory() as folder:
            load_and_run(package, Path(folder), find_python(python), torch)


def find_python(version: str) -> str:
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in [shutil.which(name), *pyenv.glob(f"{version}.*/bin/{name}")]:
        if candidate and starts(candidate):
            return str(candidate)
    raise SystemExit(f"no {name} on this machine")


def starts(python: str | Path) -> bool:
    """False for the launchers that pyenv puts in the path for versions that are not switched on."""
    return subprocess.run([python, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0


def load_and_run(package: Path, folder: Path, python: str, torch: str) -> None:
    environment = folder / "venv"
    subprocess.run([python, "-m", "venv", environment], check=True)
    install = [environment / "bin/pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*install, *NEEDED_BY_TORCH], check=True)
    subprocess.run([*install, "--no-deps", torch], check=True)

    (libraries,) = environment.glob("lib/python3*/site-packages/torch/lib")
    stubs = folder / "stubs"
    stubs.mkdir()
    make_stubs(libraries, stubs)

    subprocess.run(
        [environment / "bin/python", "-c", PROBE],
        cwd=package,
        env=os.environ | {"LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": str(package)},
        check=True,
    )


def make_stubs(libraries: Path, stubs: Path) -> None:
    """One library that has every CUDA symbol torch's libraries miss, under every name they ask for.
    All its functions answer "no device"."""
    names, symbols = set(), defaultdict(set)
    for library in libraries.glob("lib*.so"):
        needed = re.findall(r"NEEDED +(\S+)", output("objdump", "-p", library))
        names |= {name for name in needed if re.match(r"lib(cu|nccl|nv)", name)}
        for line in output("nm", "-D", "--undefined-only", library).splitlines():
            symbol, _, version = line.split()[-1].partition("@")
            if re.match(r"_*(cu|p?nccl|nv)", symbol):
                symbols[version].add(symbol)

    if not names:
        return  # a CPU build of torch

    no_device = 100  # cudaErrorNoDevice and CUDA_ERROR_NO_DEVICE
    every_symbol = set().union(*symbols.values())
    functions = [f"int {symbol}(void) {{ return {no_device}; }}" for symbol in every_symbol]
    versions = [f"{v} {{ global: {'; '.join(symbols[v])}; }};" for v in symbols if v]
    source, script, stub = stubs / "stub.c", stubs / "stub.map", stubs / "stub.so"
    source.write_text("\n".join(functions))
    script.write_text("\n".join(versions))
    options = ["-w", "-shared", "-fPIC", "-nostdlib", f"-Wl,--version-script={script}"]
    subprocess.run(["gcc", *options, "-o", stub, source], check=True)
    for name in names:
        (stubs / name).symlink_to(stub)


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
