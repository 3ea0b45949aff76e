"""The kernels of the sigmoid losses with one mistake each: does their exercise see it?"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from cuda_on_host.build import CACHE, HERE, host_environment, why_not
from cuda_on_host.package import CUDA, SOURCES, build_package

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
FILES = ["elements.cu", "operand.cuh", "totals.cuh"]


class Bug(NamedTuple):
    file: str
    text: str
    instead: str


BUGS = {
    "lost_tail": Bug("operand.cuh", "+ elements - 1) / elements", ") / elements"),
    "lost_partial_sum": Bug("totals.cuh", "i < blocks", "i + 1 < blocks"),
    "ignored_elements_stay": Bug(
        "elements.cu", "counted >> i & 1 ? values[i] : Acc(0)", "values[i]"
    ),
    "copies_count": Bug("elements.cu", "if (chunk.holds(i) && !(", "if (!("),
    "wrong_stride": Bug("operand.cuh", "rest * operand.stride[0]", "rest * operand.stride[inner]"),
}


def plant(name: str) -> Path:
    """The kernels' file with the mistake, beside copies of those it might be in."""
    bug, folder = BUGS[name], CACHE / "bugs" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        text = (CUDA / file).read_text()
        if file == bug.file:
            assert text.count(bug.text) == 1, bug
            text = text.replace(bug.text, bug.instead)
        for header in re.findall(r'#include "(.+)"', text):
            if header not in FILES:
                text = text.replace(f'"{header}"', f'"{(CUDA / header).resolve()}"')
        (folder / file).write_text(text)
    return folder / "elements.cu"


@pytest.mark.parametrize("name", BUGS)
def test_seen(name: str) -> None:
    sources = [source for source in SOURCES if source.name != "elements.cu"]
    package = build_package("plain", [*sources, plant(name)], name)
    result = subprocess.run(
        [sys.executable, str(HERE / "exercise_elements.py"), "--quick"],
        cwd=package,
        env=host_environment("plain") | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode != 0 and "AssertionError: (Case(" in result.stderr, result.stderr
