"""One run: check against float64, weigh, time interleaved, and write each work when done."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench import device_timing, environment, memory, results, timing
from bench.baselines import BASELINES, COPY
from bench.cases import Option
from bench.check import TOLERANCE, Errors, Expected
from bench.problem import Forward, Problem
from bench.providers import Provider
from bench.results import Result
from bench.shapes import Shape
from bench.subjects import Subject
from bench.timing import Summary, interleave

# More than this share of the processors taken by others is called out: threads that meet at
# the end of a loop then wait for the scheduler, which makes milliseconds of microseconds.
QUIET = 0.02

# The resident set grows in pages and blocks of the allocator: below this it says little of a call.
MIN_BYTES_TO_WEIGH = 4 << 20


@dataclass(frozen=True)
class Plan:
    """What a run measures."""

    subject: Subject
    device: str
    shapes: Sequence[Shape]
    dtypes: Sequence[str] | None  # None: those of each shape
    works: Sequence[str]
    options: Sequence[str] | None  # None: those of each shape
    providers: Sequence[str] | None  # None: all but those left out on this device
    minutes: float | None  # no shape is begun later
    weigh: bool
    threads: int
    csv: Path | None

    def problems(self) -> list[tuple[Shape, str]]:
        return [
            (shape, dtype)
            for shape in self.shapes
            for dtype in shape.dtypes
            if self.dtypes is None or dtype in self.dtypes
        ]

    def options_of(self, shape: Shape) -> list[Option]:
        return [self.subject.options[name] for name in self.options or shape.options]

    def wanted_providers(self) -> list[Provider]:
        """Those named, or all but the left out, which are named with the reason."""
        providers = self.subject.providers
        if self.providers:
            return [providers[name] for name in self.providers]
        for provider in providers.values():
            if reason := provider.left_out.get(self.device):
                say(f"left out {provider.name}: {reason}")
        return [each for each in providers.values() if self.device not in each.left_out]


@dataclass
class Contender:
    """A provider at one work and option, with what is known of it so far."""

    work: str
    option: Option
    provider: Provider
    call: Forward | None = None
    status: str = results.OK
    detail: str = ""
    errors: Errors = field(default_factory=Errors)
    memory: dict[str, int] = field(default_factory=dict)
    time: Summary | None = None
    baseline_time: Summary | None = None
    others_share: float | None = None
    clocks: str = ""

    @property
    def name(self) -> str:
        return f"{self.option.name} {self.provider.name}"


def run(plan: Plan) -> Path:
    """Measure the plan; returns the file that holds the results."""
    torch.set_num_threads(plan.threads)
    memory.take_from_heap(memory.WITHOUT_HOLES)
    described = environment.describe(plan.device)
    name = results.file_name(plan.device, described["machine"], plan.threads)
    path = plan.csv or environment.ROOT / results.FOLDER / f"{plan.subject.file}-{name}"
    providers = available_providers(plan.wanted_providers())

    problems = plan.problems()
    given_up = []
    started = time.monotonic()
    for index, (shape, dtype) in enumerate(problems):
        if plan.minutes is not None and time.monotonic() - started > plan.minutes * 60:
            left = ", ".join(f"{shape.name} {dtype}" for shape, dtype in problems[index:])
            say(f"out of time, not measured: {left}")
            break
        say(f"[{index + 1}/{len(problems)}] {shape.name} {shape.label} {dtype}")
        try:
            problem = plan.subject.problem(shape, getattr(torch, dtype), plan.device)
            for contenders in measure(plan, problem, providers):
                rows = [to_result(plan, shape, dtype, each, described) for each in contenders]
                results.merge(path, rows, plan.subject.result)
        except ImportError as error:  # of a trained model's shape, which needs a tokenizer
            say(f"skipped {shape.name}: {error}")
        except Exception as error:  # no memory for it, say: the next may fit
            say(f"gave up {shape.name} {dtype}: {summary_of(error)}")
            given_up.append(f"{shape.name} {dtype}")
    if given_up:
        raise SystemExit(f"not measured: {', '.join(given_up)}")
    return path


def available_providers(providers: Iterable[Provider]) -> list[Provider]:
    """Those that load; the others are named with the reason."""
    available = []
    for provider in providers:
        try:
            provider.load("forward")
        # Whatever goes wrong while a package is imported is a reason to do without it.
        except Exception as error:
            reason = error if isinstance(error, ImportError) else summary_of(error)
            say(f"skipped {provider.name}: {reason}")
        else:
            available.append(provider)
    return available


def able(problem: Problem, providers: Iterable[Provider]) -> list[Provider]:
    """Those that can be given the problem; the others are named with the reason."""
    dtype = str(problem.dtype).removeprefix("torch.")
    taking_part = []
    for provider in providers:
        if obstacles := provider.obstacles(problem.shape, dtype):
            say(f"  without {provider.name}: not for {', '.join(sorted(obstacles))}")
        else:
            taking_part.append(provider)
    return taking_part


def measure(
    plan: Plan, problem: Problem, providers: Sequence[Provider]
) -> Iterator[list[Contender]]:
    """The contenders of each work in turn, at one shape and dtype."""
    providers = able(problem, providers)
    contenders = []
    for option in plan.options_of(problem.shape):
        contenders += checked(plan, problem, option, providers)

    right = timeable(contenders)
    if plan.weigh and problem.logits_bytes >= MIN_BYTES_TO_WEIGH:
        for provider in providers:
            weigh(plan, problem, [each for each in right if each.provider is provider])
    for work in plan.works:
        of_work = [each for each in contenders if each.work == work]
        time_work(problem, timeable(of_work), plan.subject.baseline)
        yield of_work


def timeable(contenders: Iterable[Contender]) -> list[Contender]:
    """Those that nothing is wrong with so far."""
    return [each for each in contenders if each.status == results.OK]


def checked(
    plan: Plan, problem: Problem, option: Option, providers: Sequence[Provider]
) -> list[Contender]:
    """Every contender of one option, compared with float64."""
    expected = plan.subject.expected(problem, option)  # large: of one option at a time
    contenders = []
    for provider in providers:
        for work in plan.works:
            if provider.supports(option, work):
                contender = Contender(work, option, provider)
                check(contender, problem, expected)
                contenders.append(contender)
    return contenders


def check(contender: Contender, problem: Problem, expected: Expected) -> None:
    """Build the call and compare it with float64; a contender that fails here is never timed."""
    try:
        fingerprint = problem.fingerprint()
        loss = contender.provider.load(contender.work)
        call = problem.call(contender.work, loss, contender.option)
        contender.errors = expected.errors(call)
        call.release()
        overwritten = problem.fingerprint() != fingerprint
    # Whatever a provider raises is a result about the provider, it does not end the run.
    except Exception as error:
        fail(contender, error)
    else:
        contender.call = call
        if overwritten:
            problem.restore()  # or those that follow would get other inputs
            contender.status = results.WRONG
            contender.detail = "it overwrote its inputs"
        elif not contender.errors.within(TOLERANCE[problem.dtype]):
            contender.status = results.WRONG
            contender.detail = str(contender.errors)
    if contender.status != results.OK:
        say(f"  {contender.status}: {contender.work} {contender.name}: {contender.detail}")


def weigh(plan: Plan, problem: Problem, contenders: Sequence[Contender]) -> None:
    """Peak memory of the contenders of one provider."""
    if problem.device == "cuda":
        for each in contenders:
            try:
                each.memory = problem.weigh(each.call, memory.allocated_growth)
            except Exception as error:
                fail(each, error)
            each.call.release()
        return
    if not contenders:
        return
    weighed = memory.measure(
        plan.subject.name,
        contenders[0].provider.name,
        problem.shape.name,
        str(problem.dtype).removeprefix("torch."),
        plan.threads,
        [(each.work, each.option.name) for each in contenders],
    )
    for each in contenders:
        each.memory = weighed.get((each.work, each.option.name), {})


def time_work(problem: Problem, contenders: Sequence[Contender], baseline: str) -> None:
    """Time the contenders of one kind of work, and the 100 %, in the same rounds."""
    if not contenders:
        return
    others = environment.OtherProcesses()
    memory.take_from_heap(memory.SETTLED)
    try:
        times = times_of(problem, contenders, baseline)
    # No memory, or a device that a provider left broken: nobody is timed, and the run goes on.
    except Exception as error:
        say(f"  failed: {contenders[0].work}: {summary_of(error)}")
        for each in timeable(contenders):
            fail(each, error)
        return
    finally:
        memory.take_from_heap(memory.WITHOUT_HOLES)
    share = others.share()
    clocks = environment.clocks() if problem.device == "cuda" else ""
    if clocks:
        say(f"  {clocks}")
    if share is not None and share > QUIET:
        say(f"  busy machine: other processes took {share:.0%} of the processors")
    say(f"  {baseline:53} {times[baseline].median:12.1f} us")
    for each in contenders:
        if each.name not in times:
            continue
        each.others_share = share
        each.clocks = clocks
        each.time = times[each.name]
        each.baseline_time = times[baseline]
        spread = (each.time.q3 - each.time.q1) / each.time.median
        say(f"  {each.work:16} {each.name:36} {each.time.median:12.1f} us, IQR {spread:.1%}")


def times_of(
    problem: Problem, contenders: Sequence[Contender], baseline: str
) -> dict[str, Summary]:
    """By the clock of the device and the work."""
    if problem.device != "cuda":
        return interleave(calls_of(problem, contenders, baseline))
    if contenders[0].call.on_host:
        return interleave(calls_of(problem, contenders, baseline), device_timing.time_on_host)
    return times_on_device(problem, contenders, baseline)


def calls_of(
    problem: Problem, contenders: Sequence[Contender], baseline: str
) -> dict[str, timing.Contender]:
    """What takes turns."""
    return {each.name: each.call for each in contenders} | {baseline: BASELINES[baseline](problem)}


def times_on_device(
    problem: Problem, contenders: Sequence[Contender], baseline: str = COPY
) -> dict[str, Summary]:
    """Device times of the contenders and the 100 %; one that cannot be captured has none."""
    copies = device_timing.copies(problem)
    if not copies:
        return interleave(calls_of(problem, contenders, baseline), device_timing.time_calls)
    replays = {baseline: device_timing.Replay([BASELINES[baseline](each) for each in copies])}
    for each in contenders:
        calls = [copy.call(each.work, each.call.loss, each.option) for copy in copies]
        try:
            replays[each.name] = device_timing.Replay(calls)
        except Exception as error:  # each compiler has exceptions of its own
            fail(each, error)
    times = interleave(replays, device_timing.time_calls)
    return {name: time.of_one(len(copies)) for name, time in times.items()}


def fail(contender: Contender, error: Exception) -> None:
    contender.status = results.FAILED
    contender.detail = summary_of(error)


def summary_of(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def to_result(
    plan: Plan, shape: Shape, dtype: str, contender: Contender, described: dict[str, str]
) -> Result:
    times, baseline = contender.time, contender.baseline_time
    columns = plan.subject.columns(
        shape,
        getattr(torch, dtype),
        contender.work,
        contender.option,
        baseline and baseline.median,
    )
    return plan.subject.result(
        device=plan.device,
        shape=shape.name,
        size=shape.label,
        dtype=dtype,
        work=contender.work,
        option=contender.option.name,
        provider=contender.provider.name,
        status=contender.status,
        detail=contender.detail,
        median_us=times and times.median,
        q1_us=times and times.q1,
        q3_us=times and times.q3,
        rounds=times and times.rounds,
        calls=times and times.calls,
        others_share=contender.others_share,
        clocks=contender.clocks,
        **contender.memory,
        **{f"{name}_error": error for name, error in contender.errors.items()},
        **columns,
        **described,
    )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
