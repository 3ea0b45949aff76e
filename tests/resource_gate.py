"""Holds the registers, spills and shared memory of every kernel against resource_budget.json.

    python tests/resource_gate.py [FILE.cu ..]    compiles and prints a table; no GPU needed
    python tests/resource_gate.py --write         and records it for the tests, in resources.json

To compile every kernel for every architecture takes many minutes. So the tests read the record,
which names the sources it belongs to, and compile one file of them to compare.

The budget maps regular expressions, searched in a kernel's name, to limits:

    threads           of a block, for the occupancy
    registers         of a thread, at most
    occupancy         threads that fit on a multiprocessor / those that could be there, at least
    dynamic_shared    bytes, for the occupancy; 0 if left out
    static_shared, stack, spills    bytes, at most; 0 if left out
"""

import argparse
import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

from cuda_on_host.build import cached_text, digest, headers_near

ROOT = Path(__file__).resolve().parent.parent
BUDGET = Path(__file__).with_name("resource_budget.json")
RECORD = Path(__file__).with_name("resources.json")
REGISTERS = 65536  # of a multiprocessor
LANES = 32


class Multiprocessor(NamedTuple):
    """Of an architecture: what is shared by the blocks on it (CUDA programming guide)."""

    threads: int
    blocks: int
    shared_bytes: int


MULTIPROCESSORS = {
    75: Multiprocessor(1024, 16, 64 << 10),
    80: Multiprocessor(2048, 32, 164 << 10),
    90: Multiprocessor(2048, 32, 228 << 10),
    100: Multiprocessor(2048, 32, 228 << 10),
    120: Multiprocessor(1536, 24, 100 << 10),
}
ARCHITECTURES = tuple(MULTIPROCESSORS)


class Kernel(NamedTuple):
    name: str
    architecture: int
    registers: int
    spills: int
    stack: int
    static_shared: int


def from_setup(name: str, default: list[str]) -> list[str]:
    """A list of strings that setup.py assigns to this name."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return ast.literal_eval(node.value)
    return default


def kernel_files() -> list[Path]:
    return [ROOT / name for name in from_setup("CUDA_SOURCES", []) if name.endswith(".cu")]


@functools.cache
def nvcc_version() -> str:
    return subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout


def ptxas_report(source: Path, architecture: int) -> str:
    flags = from_setup("NVCC_FLAGS", ["-std=c++17", "-O3"])
    command = ["nvcc", *flags, f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v", str(source)]

    def compile_kernels() -> str:
        with tempfile.TemporaryDirectory() as folder:
            cubin = str(Path(folder, "kernels.cubin"))
            result = subprocess.run([*command, "-o", cubin], capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
        return result.stderr

    inputs = [path.read_text() for path in [source, *headers_near(source)]]
    return cached_text("ptxas", [nvcc_version(), *command, *inputs], compile_kernels)


def demangle(names: Sequence[str]) -> list[str]:
    filt = shutil.which("c++filt") or shutil.which("cu++filt")
    if filt is None or not names:
        return list(names)
    result = subprocess.run([filt], input="\n".join(names), capture_output=True, text=True)
    return [shorten(name) for name in result.stdout.splitlines()]


def shorten(name: str) -> str:
    """Without return type, parameters, namespaces and casts of template arguments."""
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    name = re.sub(r"\b(?:torchce|cuda)::|_GLOBAL__N__\w+::", "", name)
    name = re.sub(r"(?<=[<, ])\([\w:]+\)", "", name)
    return name.split("(", 1)[0]


def parse(report: str, architecture: int) -> list[Kernel]:
    kernels: list[Kernel] = []
    names: list[str] = []
    about = ""
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            names.append(found[1])
            kernels.append(Kernel(found[1], architecture, 0, 0, 0, 0))
        elif found := re.search(r"Function properties for (\w+)", line):
            about = found[1]
        elif kernels and about == kernels[-1].name:
            if found := re.search(r"(\d+) bytes stack frame, (\d+) \D+ (\d+) \D+", line):
                stack, stores, loads = map(int, found.groups())
                kernels[-1] = kernels[-1]._replace(stack=stack, spills=stores + loads)
            elif found := re.search(r"Used (\d+) registers", line):
                shared = re.search(r"(\d+) bytes smem", line)
                kernels[-1] = kernels[-1]._replace(
                    registers=int(found[1]), static_shared=int(shared[1]) if shared else 0
                )
    return [
        kernel._replace(name=name) for kernel, name in zip(kernels, demangle(names), strict=True)
    ]


def resources(files: Iterable[Path], architectures: Iterable[int] = ARCHITECTURES) -> list[Kernel]:
    def compile_one(job: tuple[Path, int]) -> list[Kernel]:
        return parse(ptxas_report(*job), job[1])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(compile_one, product(files, architectures)), [])


def sources_digest() -> str:
    """Of what decides the kernels' machine code, but the compiler: comments and blanks do not."""
    headers = [*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc" / "cuda").glob("*.*h")]
    texts = [path.read_text() for path in [*kernel_files(), *sorted(headers)]]
    code = ["".join(re.sub(r"//.*", "", text).split()) for text in texts]
    return digest(*from_setup("NVCC_FLAGS", []), *code)


def write_record(kernels: Sequence[Kernel]) -> None:
    lines = [json.dumps(list(kernel)) for kernel in sorted(kernels)]
    head = {"nvcc": nvcc_version().splitlines()[-1], "sources": sources_digest()}
    text = json.dumps(head)[1:-1] + ', "kernels": [\n' + ",\n".join(lines) + "\n]"
    RECORD.write_text("{" + text + "}\n")


def read_record(path: Path = RECORD) -> tuple[dict[str, str], list[Kernel]]:
    """The compiler and the sources of the record, and its kernels."""
    record = json.loads(path.read_text())
    return record, [Kernel(*kernel) for kernel in record.pop("kernels")]


def occupancy(kernel: Kernel, threads: int, dynamic_shared: int = 0) -> float:
    """Resident threads as a part of those a multiprocessor could hold."""
    whole = MULTIPROCESSORS[kernel.architecture]
    warps = -(-threads // LANES)
    of_a_warp = -(-kernel.registers // 8) * 8 * LANES  # given in units of 256
    warps_by_registers = REGISTERS // of_a_warp // 4 * 4  # four partitions, alike
    shared = kernel.static_shared + dynamic_shared + 1024  # that the system keeps
    blocks = min(
        whole.blocks,
        whole.threads // (warps * LANES),
        warps_by_registers // warps,
        whole.shared_bytes // shared,
    )
    return blocks * warps * LANES / whole.threads


def rule_for(kernel: Kernel, budget: dict[str, dict]) -> str | None:
    return next((pattern for pattern in budget if re.search(pattern, kernel.name)), None)


def kernel_violations(kernel: Kernel, limits: dict) -> list[str]:
    found = [
        f"{key} {getattr(kernel, key)} > {limits.get(key, 0)}"
        for key in ("registers", "spills", "stack", "static_shared")
        if getattr(kernel, key) > limits.get(key, 0)
    ]
    share = occupancy(kernel, limits["threads"], limits.get("dynamic_shared", 0))
    if share < limits["occupancy"]:
        found.append(f"occupancy {share:.2f} < {limits['occupancy']}")
    return found


def violations(kernels: Sequence[Kernel], budget: dict[str, dict]) -> list[str]:
    """Each limit that a kernel exceeds, kernels without a rule, rules without a kernel."""
    found, used = [], set()
    for kernel in kernels:
        pattern = rule_for(kernel, budget)
        used.add(pattern)
        problems = ["no rule"] if pattern is None else kernel_violations(kernel, budget[pattern])
        found += [f"sm_{kernel.architecture} {kernel.name}: {problem}" for problem in problems]
    return found + [
        f"rule without a kernel: {pattern}" for pattern in budget if pattern not in used
    ]


def table(kernels: Sequence[Kernel], budget: dict[str, dict]) -> str:
    lines = ["arch    registers  spills  stack  shared  occupancy  kernel"]
    for kernel in kernels:
        limits = budget.get(rule_for(kernel, budget) or "")
        share = "-"
        if limits is not None:
            used = occupancy(kernel, limits["threads"], limits.get("dynamic_shared", 0))
            share = f"{used:.2f}"
        lines.append(
            f"sm_{kernel.architecture:<4} {kernel.registers:9}  {kernel.spills:6}  {kernel.stack:5}"
            f"  {kernel.static_shared:6}  {share:>9}  {kernel.name}"
        )
    return "\n".join(lines)


def read_budget(path: Path = BUDGET) -> dict[str, dict]:
    return json.loads(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="instead of those of setup.py")
    parser.add_argument("--budget", type=Path, default=BUDGET)
    parser.add_argument("--write", action="store_true", help="record the kernels of setup.py")
    options = parser.parse_args()
    budget = read_budget(options.budget)
    kernels = resources([path.resolve() for path in options.files] or kernel_files())
    print(table(kernels, budget))
    if options.write and not options.files:
        write_record(kernels)
    found = violations(kernels, budget)
    print("\n".join(found) or f"{len(kernels)} kernels within the budget")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
