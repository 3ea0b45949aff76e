"""Rules of the house that a compiler does not check."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
CODE = sorted(
    path
    for folder in ("csrc", "torchce_cuda", "tests", "bench", "demo", "examples", "docs")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".h", ".cpp", ".cu", ".cuh", ".py", ".md"}
)
KERNELS = [path for path in CODE if path.suffix in {".cu", ".cuh"}]
INCLUDE = re.compile(r"^\s*#\s*include\s*[<\"]([^>\"]+)[>\"]", re.MULTILINE)

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="needs the source tree")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def includes(path: Path) -> list[str]:
    return INCLUDE.findall(path.read_text())


def test_kernels_know_no_tensors() -> None:
    """Raw pointers compile in seconds; one torch header in a kernel costs minutes."""
    for path in KERNELS:
        for header in includes(path):
            assert not header.startswith(("torch/", "ATen/", "c10/")), f"{name(path)}: {header}"


def reached_from(path: Path) -> set[Path]:
    """The headers of ours that a file includes, directly or not."""
    found, todo = set(), [path]
    while todo:
        current = todo.pop()
        for header in includes(current):
            target = (current.parent / header).resolve()
            if target.is_file() and target not in found:
                found.add(target)
                todo.append(target)
    return found


@pytest.mark.parametrize("header", ["row_math.h", "problem.h"])
def test_the_mathematics_needs_no_library(header: str) -> None:
    """Host and device compile it, so it reaches nothing but itself and standard headers."""
    standard = {"algorithm", "cmath", "cstdint", "cstring", "limits", "type_traits", "utility"}
    for path in {CSRC / header} | reached_from(CSRC / header):
        for include in includes(path):
            own = (path.parent / include).is_file()
            assert own or include in standard, f"{name(path)}: {include}"


def test_sources_are_listed_by_name() -> None:
    """Each compiled file is in setup.py, each name there is a file, nothing is globbed."""
    text = (ROOT / "setup.py").read_text()
    assert "glob" not in text
    strings = {
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    listed = {value for value in strings if value.startswith("csrc/")}
    compiled = {
        name(path) for path in CODE if path.suffix in {".cpp", ".cu"} and CSRC in path.parents
    }
    assert listed == compiled


def test_no_path_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|opt|mnt|usr)/[\w.]")
    for path in [*CODE, ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / "README.md"]:
        if path.is_file() and path != Path(__file__).resolve():
            found = pattern.search(path.read_text())
            assert found is None, f"{name(path)}: {found.group() if found else ''}"


def test_no_switch_on_the_backend() -> None:
    """A file is compiled or it is not; inside a file there is no #ifdef of CUDA builds."""
    for path in CODE:
        if path.suffix in {".h", ".cpp"}:
            assert not re.search(r"#\s*if.*WITH_CUDA", path.read_text()), name(path)


def test_no_todo() -> None:
    for path in CODE:
        if path != Path(__file__).resolve():
            assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text()), name(path)
