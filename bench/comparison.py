"""Ours beside the others at one case: the ratios and verdicts that tables and plots show."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cases import (
    COPY_BUDGETS,
    OPTION_BUDGETS,
    OPTIONS,
    PLAIN,
    SPEEDUP_BUDGETS,
    TITLES,
    Option,
)
from bench.providers import COMPILED, OURS, TORCH
from bench.results import OK, LogitsResult, Result
from bench.shapes import SHAPES, Shape


@dataclass(frozen=True)
class Promise:
    """What was promised, and whether it is kept; None: there is nothing to judge it by."""

    text: str
    kept: bool | None

    def __str__(self) -> str:
        return f"{self.text}: {'met' if self.kept else '**not met**'}"


@dataclass(frozen=True)
class Comparison:
    """One case: the row of each provider. One that was not timed is None in what follows."""

    rows: Mapping[str, Result]

    @property
    def case(self) -> Result:
        """Whichever provider's row names the case."""
        return next(iter(self.rows.values()))

    def timed(self, provider: str) -> Result | None:
        row = self.rows.get(provider)
        return row if row and row.status == OK else None

    @property
    def ours(self) -> Result | None:
        return self.timed(OURS)

    @property
    def others(self) -> list[Result]:
        """Whoever else was timed."""
        return [row for name in self.rows if name != OURS and (row := self.timed(name))]

    def speedup_over(self, provider: str) -> float | None:
        """Time of a provider / ours."""
        return time_ratio(self.timed(provider), self.ours)

    @property
    def fastest_other(self) -> Result | None:
        return min(self.others, key=lambda row: row.median_us, default=None)

    @property
    def lead(self) -> float | None:
        """Time of the fastest other provider / ours."""
        return time_ratio(self.fastest_other, self.ours)

    def promises(self) -> Iterable[Promise]:
        """What was promised of this case."""
        return ()

    def promise(
        self, text: str, value: float | None, least: float = -math.inf, most: float = math.inf
    ) -> Promise:
        """A promise about a value of ours; broken where ours was not timed."""
        if self.ours is None:
            return Promise(text, False)
        return Promise(text, None if value is None else least <= value <= most)

    @property
    def judged(self) -> list[Promise]:
        return [promise for promise in self.promises() if promise.kept is not None]

    @property
    def met(self) -> bool | None:
        """Whether every promise is kept; None where there is none, or nothing to judge it by."""
        return all(promise.kept for promise in self.judged) if self.judged else None

    @property
    def lost(self) -> bool:
        """Whether another provider is faster, or a promise is broken."""
        return self.met is False or (self.lead is not None and self.lead < 1)


@dataclass(frozen=True)
class LogitsComparison(Comparison):
    """The loss of given logits."""

    plain: LogitsResult | None  # ours without any option, in the same rounds

    @property
    def torch(self) -> Result | None:
        return self.timed(TORCH)

    @property
    def compiled(self) -> Result | None:
        return self.timed(COMPILED)

    @property
    def speedup(self) -> float | None:
        """Time of F.cross_entropy / ours."""
        return self.speedup_over(TORCH)

    @property
    def speedup_over_compiled(self) -> float | None:
        """Time of the compiled F.cross_entropy / ours."""
        return self.speedup_over(COMPILED)

    @property
    def cost(self) -> float | None:
        """Time of ours with the option / ours without."""
        return time_ratio(self.ours, self.plain)

    @property
    def is_plain(self) -> bool:
        return self.case.option == PLAIN

    @property
    def speedup_budget(self) -> float | None:
        """The least speed-up that was promised."""
        key = (self.case.shape, self.case.dtype, self.case.work)
        promised = self.is_plain and self.case.device == "cpu"
        return SPEEDUP_BUDGETS.get(key) if promised else None

    @property
    def cost_budget(self) -> float | None:
        """The largest cost that was promised."""
        return OPTION_BUDGETS[self.case.device].get(self.case.option)

    @property
    def copy_budget(self) -> float | None:
        """The least share of the copy bandwidth that was promised."""
        return COPY_BUDGETS.get((self.case.shape, self.case.work)) if self.is_plain else None

    def promises(self) -> Iterable[Promise]:
        if (least := self.speedup_budget) is not None:
            yield self.promise(f"≥ {least:g}x", self.speedup, least=least)
        if (most := self.cost_budget) is not None:
            yield self.promise(f"cost ≤ {most:g}x", self.cost, most=most)
        if (least := self.copy_budget) is not None:
            share = self.ours and share_of_copy(self.ours)
            yield self.promise(f"≥ {least:.0%} of copy", share, least=least)


@dataclass(frozen=True)
class Run:
    """The results of one machine, and the plots that show them."""

    subject: str
    path: Path
    results: Sequence[Result]
    comparisons: Sequence[Comparison]
    plot_names: Sequence[str] = ()

    @property
    def machine(self) -> str:
        """Where it was measured; the threads of a GPU's host are of no account."""
        row = self.results[0]
        return f"{row.machine}, {row.threads} threads" if row.device == "cpu" else row.machine

    @property
    def providers(self) -> list[str]:
        """Who took part, in the order of the file."""
        return list(dict.fromkeys(row.provider for row in self.results))

    @property
    def digest(self) -> str:
        """Of the file: a plot carries that of the results that it shows."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def plots(self) -> tuple[Path, ...]:
        return tuple(map(self.plot, self.plot_names))

    def plot(self, name: str) -> Path:
        """Beside the results."""
        return self.path.with_name(f"{self.path.stem}-{name}.png")


def compare(results: Sequence[LogitsResult]) -> list[LogitsComparison]:
    """Every case of a result file of given logits."""
    cases = by_case(results, SHAPES)
    compared = []
    for (*problem, _), rows in cases.items():
        plain = Comparison(cases.get((*problem, PLAIN), {}))
        compared.append(LogitsComparison(rows, plain.ours))
    return compared


def by_case(
    results: Sequence[Result],
    shapes: Mapping[str, Shape],
    options: Mapping[str, Option] = OPTIONS,
) -> dict[tuple[str, str, str, str], dict[str, Result]]:
    """Shape, dtype, work and option -> provider -> row, in the order of shapes, works, options."""
    cases: dict[tuple[str, str, str, str], dict[str, Result]] = {}
    for row in results:
        case = (row.shape, row.dtype, row.work, row.option)
        cases.setdefault(case, {})[row.provider] = row

    def order(case: tuple[str, str, str, str]) -> tuple[int, bool, int, int]:
        shape, dtype, work, option = case
        in_order = (
            list(shapes).index(shape),
            list(TITLES).index(work),
            list(options).index(option),
        )
        return (in_order[0], dtype != "float32", *in_order[1:])

    return {case: cases[case] for case in sorted(cases, key=order)}


def time_ratio(over: Result | None, under: Result | None) -> float | None:
    return over.median_us / under.median_us if over and under else None


def gigabytes_per_second(result: LogitsResult) -> float:
    """Of the bytes that the work must move."""
    return result.bytes / result.median_us / 1e3


def share_of_copy(result: LogitsResult) -> float:
    """Of the bandwidth at which the logits were copied in the same rounds."""
    return gigabytes_per_second(result) / (result.copy_bytes / result.copy_us / 1e3)


def relative_spread(result: Result) -> float:
    """Interquartile range / median."""
    return (result.q3_us - result.q1_us) / result.median_us
