"""What the commands measure: shapes, providers, the check, the 100 %, and the rows written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from bench import providers, shapes, traffic
from bench.baselines import COPY, PRODUCTS
from bench.cases import Option
from bench.check import Expected
from bench.linear import cases as linear_cases
from bench.linear import providers as linear_providers
from bench.linear.check import LinearExpected
from bench.providers import Provider
from bench.results import LinearResult, LogitsResult, Result
from bench.shapes import Shape


@dataclass(frozen=True)
class Subject:
    """What one command measures."""

    name: str
    shapes: Mapping[str, Shape]
    providers: Mapping[str, Provider]
    expected: type[Expected]
    baseline: str
    result: type[Result]
    # Columns that only its rows have, of a shape, dtype, work, option and the baseline's time.
    columns: Callable[[Shape, torch.dtype, str, Option, float | None], dict]
    file_prefix: str = ""


def _logits_columns(
    shape: Shape, dtype: torch.dtype, work: str, option: Option, copy_us: float | None
) -> dict:
    size = (shape.rows, shape.cols, dtype.itemsize)
    return {
        "bytes": traffic.BYTES_OF_WORK[work](*size, option.probabilities),
        "copy_us": copy_us,
        "copy_bytes": traffic.copy(*size),
    }


def _linear_columns(
    shape: Shape, dtype: torch.dtype, work: str, option: Option, products_us: float | None
) -> dict:
    return {"products_us": products_us}


LOGITS = Subject(
    "logits", shapes.SHAPES, providers.PROVIDERS, Expected, COPY, LogitsResult, _logits_columns
)
LINEAR = Subject(
    "linear",
    linear_cases.SHAPES,
    linear_providers.PROVIDERS,
    LinearExpected,
    PRODUCTS,
    LinearResult,
    _linear_columns,
    file_prefix="linear-",
)
SUBJECTS = {subject.name: subject for subject in (LOGITS, LINEAR)}
