"""Kernels of the package with mistakes: what must fail, so that a test is known to look.

build_with(bugs)                          a package that has all of them, and makes none or one
run_exercise(package, exercise, mistake)  where it makes the bug of this number, from 1 on; 0: none
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .build import CACHE, HERE, ROOT, digest, host_environment
from .package import SOURCES, build_package


class Bug(NamedTuple):
    """An expression of a file of csrc, and what stands there by mistake."""

    file: str
    right: str
    wrong: str


def build_with(bugs: Sequence[Bug]) -> Path:
    original = ROOT / "csrc"
    texts = {path: path.read_text() for path in sorted(original.rglob("*")) if path.is_file()}
    for number, bug in enumerate(bugs, start=1):
        text = texts[original / bug.file]
        assert text.count(bug.right) == 1, bug
        choice = f"(planted_mistake == {number} ? ({bug.wrong}) : ({bug.right}))"
        texts[original / bug.file] = text.replace(bug.right, choice)
    for file in {bug.file for bug in bugs}:
        texts[original / file] = f'#include "{HERE / "mistake.h"}"\n' + texts[original / file]

    copy = CACHE / f"mistakes-{digest(*texts.values())}"
    for path, text in texts.items():
        place = copy / path.relative_to(original)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    sources = [
        copy / path.relative_to(original) if path.is_relative_to(original) else path
        for path in SOURCES
    ]
    return build_package("plain", sources, "mistakes", ["-O1"])  # compiled longer than executed


def run_exercise(package: Path, exercise: str, mistake: int) -> subprocess.CompletedProcess:
    environment = {"PYTHONPATH": str(package), "PLANTED_MISTAKE": str(mistake)}
    return subprocess.run(
        [sys.executable, str(HERE / exercise), "--quick"],
        cwd=package,
        env=host_environment("plain") | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
