"""Ours beside the others at one sigmoid loss."""

from collections.abc import Sequence

from bench.comparison import Comparison, by_case
from bench.results import LogitsResult
from bench.sigmoid.cases import OPTIONS, SHAPES


def compare(results: Sequence[LogitsResult]) -> list[Comparison]:
    """Every case of a result file of sigmoid losses."""
    return [Comparison(rows) for rows in by_case(results, SHAPES, OPTIONS).values()]
