"""Kernels of the package with one mistake: what must fail, so that a test is known to look."""

import re
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from .build import CACHE, HERE, host_environment
from .package import CUDA, SOURCES, build_package


class Bug(NamedTuple):
    file: str
    text: str
    instead: str


def run_with_bug(
    name: str, bug: Bug, files: Sequence[str], kernels: str, exercise: str
) -> subprocess.CompletedProcess:
    """The exercise's run where `kernels`, one of `files`, has been compiled with the mistake.

    `files`, of csrc/cuda or relative to it, are copied, so that they include each other: those
    between the one with the mistake and the kernels.
    """
    folder = CACHE / "bugs" / name
    folder.mkdir(parents=True, exist_ok=True)
    copied = {(CUDA / file).resolve(): folder / (CUDA / file).name for file in files}
    for original, copy in copied.items():
        text = original.read_text()
        if original.name == bug.file:
            assert text.count(bug.text) == 1, bug
            text = text.replace(bug.text, bug.instead)
        for header in re.findall(r'#include "(.+)"', text):
            there = (original.parent / header).resolve()
            text = text.replace(f'"{header}"', f'"{copied.get(there, there)}"')
        copy.write_text(text)
    sources = [source for source in SOURCES if source.name != kernels]
    package = build_package("plain", [*sources, folder / kernels], name)
    return subprocess.run(
        [sys.executable, str(HERE / exercise), "--quick"],
        cwd=package,
        env=host_environment("plain") | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=600,
    )
