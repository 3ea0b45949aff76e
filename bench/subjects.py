"""What the commands measure: shapes, providers, the check, the 100 %, and the rows written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from bench import providers, shapes, traffic
from bench.baselines import BODY, COPY, PRODUCTS
from bench.cases import MODES, OPTIONS, PROBABILITIES, STEP, WORKS_OF_DEVICE, Option
from bench.check import Expected
from bench.linear import cases as linear_cases
from bench.linear import providers as linear_providers
from bench.linear.check import LinearExpected
from bench.problem import Problem
from bench.providers import Provider
from bench.results import LinearResult, LogitsResult, Result, TrainingResult
from bench.scaling import cases as scaling_cases
from bench.shapes import Shape
from bench.sigmoid import cases as sigmoid_cases
from bench.sigmoid import providers as sigmoid_providers
from bench.sigmoid.check import SigmoidExpected
from bench.small import cases as small_cases
from bench.small import providers as small_providers
from bench.training import cases as training_cases
from bench.training import providers as training_providers
from bench.training.check import TrainingExpected
from bench.training.problem import TrainingProblem


@dataclass(frozen=True)
class Subject:
    """What one command measures."""

    name: str
    shapes: Mapping[str, Shape]
    providers: Mapping[str, Provider]
    expected: type[Expected]
    baseline: str
    result: type[Result]
    file: str  # of its rows, which others of the same columns may share
    # Columns that only its rows have, of a shape, dtype, work, option and the baseline's time.
    columns: Callable[[Shape, torch.dtype, str, Option, float | None], dict]
    works: Mapping[str, Sequence[str]] = field(default_factory=lambda: WORKS_OF_DEVICE)
    options: Mapping[str, Option] = field(default_factory=lambda: OPTIONS)
    problem: type[Problem] = Problem


def _logits_columns(
    shape: Shape, dtype: torch.dtype, work: str, option: Option, copy_us: float | None
) -> dict:
    size = (shape.rows, shape.cols, dtype.itemsize)
    return {
        "bytes": traffic.BYTES_OF_WORK[work](*size, option.probabilities),
        "copy_us": copy_us,
        "copy_bytes": traffic.copy(*size),
    }


def _sigmoid_columns(
    shape: Shape, dtype: torch.dtype, work: str, option: Option, copy_us: float | None
) -> dict:
    """There is a label for each logit, as large as it: what probabilities are elsewhere."""
    return _logits_columns(shape, dtype, work, OPTIONS[PROBABILITIES], copy_us)


def _linear_columns(
    shape: Shape, dtype: torch.dtype, work: str, option: Option, products_us: float | None
) -> dict:
    return {"products_us": products_us}


def _training_columns(
    shape: training_cases.TrainingShape,
    dtype: torch.dtype,
    work: str,
    option: Option,
    body_us: float | None,
) -> dict:
    return {"body_us": body_us, "memory_limit": shape.memory_limit}


def _everywhere(*works: str) -> dict[str, Sequence[str]]:
    return dict.fromkeys(WORKS_OF_DEVICE, works)


_OF_LOGITS = {
    "expected": Expected,
    "baseline": COPY,
    "result": LogitsResult,
    "file": "logits",
    "columns": _logits_columns,
}
_OF_HEADS = {
    "providers": linear_providers.PROVIDERS,
    "expected": LinearExpected,
    "baseline": PRODUCTS,
    "result": LinearResult,
    "file": "linear",
    "columns": _linear_columns,
    "works": _everywhere(linear_cases.WORK),
}
SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("logits", shapes.SHAPES, providers.PROVIDERS, **_OF_LOGITS),
        Subject("linear", linear_cases.SHAPES, **_OF_HEADS),
        Subject(
            "sigmoid",
            sigmoid_cases.SHAPES,
            sigmoid_providers.PROVIDERS,
            SigmoidExpected,
            COPY,
            LogitsResult,
            "logits",
            _sigmoid_columns,
            works=sigmoid_cases.WORKS,
            options=sigmoid_cases.OPTIONS,
        ),
        Subject(
            "small",
            small_cases.SHAPES,
            small_providers.PROVIDERS,
            works={"cpu": ("eager", "compiled"), "cuda": tuple(MODES)},
            **_OF_LOGITS,
        ),
        Subject(
            "scaling",
            scaling_cases.LOGITS_SHAPES,
            providers.PROVIDERS,
            works=_everywhere("forward_backward", "one_pass"),
            **_OF_LOGITS,
        ),
        Subject("linear-scaling", scaling_cases.LINEAR_SHAPES, **_OF_HEADS),
        Subject(
            "training",
            training_cases.SHAPES,
            training_providers.PROVIDERS,
            TrainingExpected,
            BODY,
            TrainingResult,
            "training",
            _training_columns,
            works=_everywhere(STEP),
            problem=TrainingProblem,
        ),
    )
}
