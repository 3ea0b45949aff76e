"""Ours beside the others at one case: the ratios and verdicts that tables and plots show."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.cases import COPY_BUDGETS, OPTION_BUDGETS, OPTIONS, PLAIN, SPEEDUP_BUDGETS, WORKS
from bench.providers import COMPILED, OURS, PROVIDERS, TORCH
from bench.results import OK, Result
from bench.shapes import SHAPES

PEERS = [name for name in PROVIDERS if name not in (OURS, TORCH, COMPILED)]


@dataclass(frozen=True)
class Comparison:
    """One case; a provider that was not timed is None."""

    case: Result  # whichever provider's row names the case
    ours: Result | None
    torch: Result | None
    compiled: Result | None
    plain: Result | None  # ours without any option, in the same rounds
    peers: Sequence[Result] = ()  # whoever else was timed

    @property
    def speedup(self) -> float | None:
        """Time of F.cross_entropy / ours."""
        return time_ratio(self.torch, self.ours)

    @property
    def speedup_over_compiled(self) -> float | None:
        """Time of the compiled F.cross_entropy / ours."""
        return time_ratio(self.compiled, self.ours)

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

    @property
    def met(self) -> bool | None:
        """Whether the promise is kept; None where there is none, or nothing to compare with."""
        budgets = (self.speedup_budget, self.cost_budget, self.copy_budget)
        if self.ours is None:
            return False if any(budget is not None for budget in budgets) else None
        if self.speedup_budget is not None and self.speedup is not None:
            return self.speedup >= self.speedup_budget
        if self.cost_budget is not None and self.cost is not None:
            return self.cost <= self.cost_budget
        if self.copy_budget is not None:
            return share_of_copy(self.ours) >= self.copy_budget
        return None

    @property
    def lost(self) -> bool:
        """Whether another provider is faster, or a budget is missed."""
        ratios = [self.speedup, self.speedup_over_compiled]
        ratios += [time_ratio(peer, self.ours) for peer in self.peers]
        return self.met is False or any(ratio is not None and ratio < 1 for ratio in ratios)


def compare(results: Sequence[Result]) -> list[Comparison]:
    """Every case of a result file, in the order of shapes, works and options."""
    timed = {(*_case(row), row.provider): row for row in results if row.status == OK}
    cases = {_case(row): row for row in results}

    def order(case: tuple[str, str, str, str]) -> tuple[int, str, int, int]:
        shape, dtype, work, option = case
        in_order = (list(SHAPES).index(shape), list(WORKS).index(work), list(OPTIONS).index(option))
        return (in_order[0], dtype != "float32", *in_order[1:])

    return [
        Comparison(
            cases[case],
            timed.get((*case, OURS)),
            timed.get((*case, TORCH)),
            timed.get((*case, COMPILED)),
            timed.get((*case[:-1], PLAIN, OURS)),
            [timed[(*case, name)] for name in PEERS if (*case, name) in timed],
        )
        for case in sorted(cases, key=order)
    ]


def time_ratio(over: Result | None, under: Result | None) -> float | None:
    return over.median_us / under.median_us if over and under else None


def gigabytes_per_second(result: Result) -> float:
    """Of the bytes that the work must move."""
    return result.bytes / result.median_us / 1e3


def share_of_copy(result: Result) -> float:
    """Of the bandwidth at which the logits were copied in the same rounds."""
    return gigabytes_per_second(result) / (result.copy_bytes / result.copy_us / 1e3)


def relative_spread(result: Result) -> float:
    """Interquartile range / median."""
    return (result.q3_us - result.q1_us) / result.median_us


def _case(row: Result) -> tuple[str, str, str, str]:
    return (row.shape, row.dtype, row.work, row.option)
