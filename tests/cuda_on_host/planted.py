"""Kernels of the package with mistakes: what must fail, so that a test is known to look.

plant()   a copy of csrc that makes none of BUGS, or the one whose number, from 1 on, is the
          environment's PLANTED_MISTAKE
"""

from pathlib import Path
from typing import NamedTuple

from .build import CACHE, HERE, ROOT, digest


class Bug(NamedTuple):
    """An expression of a file of csrc, and what stands there by mistake."""

    file: str
    right: str
    wrong: str


ROW_BUGS = {
    "classes_behind_the_row_count": Bug(
        "cuda/row.cuh", "i < left ? z[k][i] : with", "i <= left ? z[k][i] : with"
    ),
    "what_is_left_out_is_a_tie": Bug(
        "cuda/row.cuh",
        "mul_add(ties - Acc(left_out), exp_nonpos(max - reference), pass.row.sum)",
        "mul_add(ties, exp_nonpos(max - reference), pass.row.sum)",
    ),
    "no_packet_behind_a_group": Bug("cuda/row_view.cuh", "row.shift != 0", "row.shift < 0"),
    "half_words_are_not_cut": Bug("cuda/row_view.cuh", "half ? 16 : 0", "0"),
    "old_ties_are_lost": Bug("row_math.h", "moves ? sums.focal.top : Acc(0)", "Acc(0)"),
}
ELEMENT_BUGS = {
    "lost_tail": Bug(
        "cuda/operand.cuh",
        "(problem.inner_size() + elements - 1) / elements",
        "problem.inner_size() / elements",
    ),
    "lost_partial_sum": Bug("cuda/totals.cuh", "i < blocks", "i + 1 < blocks"),
    "ignored_elements_stay": Bug(
        "cuda/elements.cu", "counted >> i & 1 ? values[i] : Acc(0)", "values[i]"
    ),
    "copies_count": Bug(
        "cuda/elements.cu",
        "chunk.holds(i) && !(t[i] == work.options.ignored)",
        "!(t[i] == work.options.ignored)",
    ),
    "wrong_stride": Bug(
        "cuda/operand.cuh", "rest * operand.stride[0]", "rest * operand.stride[inner]"
    ),
}
BUGS = ROW_BUGS | ELEMENT_BUGS


def plant() -> Path:
    original = ROOT / "csrc"
    texts = {path: path.read_text() for path in sorted(original.rglob("*")) if path.is_file()}
    for number, bug in enumerate(BUGS.values(), start=1):
        text = texts[original / bug.file]
        assert text.count(bug.right) == 1, bug
        choice = f"(planted_mistake == {number} ? ({bug.wrong}) : ({bug.right}))"
        texts[original / bug.file] = text.replace(bug.right, choice)
    for file in {bug.file for bug in BUGS.values()}:
        texts[original / file] = f'#include "{HERE / "mistake.h"}"\n' + texts[original / file]

    copy = CACHE / f"planted-{digest(*texts.values())}"
    for path, text in texts.items():
        place = copy / path.relative_to(original)
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
    return copy
