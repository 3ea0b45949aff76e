"""The one table of cases: what the loss is computed of, each row with the reason it is here."""

import zlib
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
INF = float("inf")


@dataclass(frozen=True)
class Option:
    """One way to call the loss. `arguments` are keywords of `torchce_cuda.cross_entropy`."""

    name: str
    why: str
    weight: str | None = None  # a key of WEIGHTS
    arguments: MappingProxyType = field(default_factory=lambda: MappingProxyType({}))


def option(name: str, why: str, weight: str | None = None, **arguments) -> Option:
    return Option(name, why, weight, MappingProxyType(arguments))


OPTIONS = {
    row.name: row
    for row in (
        option("mean", "the default: divides by the counted rows"),
        option("sum", "no divisor", reduction="sum"),
        option("none", "one loss and one upstream gradient per row", reduction="none"),
        option("weight", "the divisor is the weight of the targets", "positive"),
        option("weight_sum", "the weight without its divisor", "positive", reduction="sum"),
        option("weight_zeros", "classes that count nothing", "zeros", reduction="sum"),
        option("weight_negative", "legal", "signed", reduction="none"),
        option("smoothing", "the usual 0.1", label_smoothing=0.1),
        option("smoothing_all", "the target itself no longer matters", label_smoothing=1.0),
        option(
            "smoothing_weight", "each class has its own weight", "positive", label_smoothing=0.1
        ),
        option("focal_half", "the slope of (1-p)^gamma is infinite at p = 1", gamma=0.5),
        option("focal_one", "the exponent gamma - 1 is 0", gamma=1.0),
        option("focal", "the usual 2", gamma=2.0),
        option("focal_real", "no integer power", gamma=3.7, reduction="none"),
        option("focal_weight", "both fold into one scalar per row", "positive", gamma=2.0),
        option("focal_smoothing", "every class is modulated", gamma=2.0, label_smoothing=0.1),
        option("z_loss", "a term in the lse alone", z_loss=1e-2),
        option("scale", "scales logits and gradient", logit_scale=0.3),
        option("softcap", "tanh, and its derivative in the gradient", logit_softcap=15.0),
        option("normalizer", "replaces the divisor of the mean", "positive", normalizer=7.5),
        option(
            "everything",
            "no option may undo another",
            "positive",
            label_smoothing=0.1,
            gamma=1.5,
            z_loss=1e-3,
            logit_scale=1.7,
            logit_softcap=20.0,
        ),
    )
}
EVERY = tuple(OPTIONS)
SOME = ("mean", "none", "smoothing_weight", "focal_weight", "everything")
SUMS = ("mean", "smoothing_all", "smoothing_weight", "focal_smoothing", "everything")
# A row without a softmax makes every sum NaN: only losses row by row can be compared.
ROWS = ("none", "focal_real")


@dataclass(frozen=True)
class Case:
    """Logits, their layout in memory and the kind of their target."""

    name: str
    shape: tuple[int, ...]  # (C), (N, C) or (N, C, d1, ..., dk)
    why: str
    dtypes: tuple[torch.dtype, ...] = (F32,)
    options: tuple[str, ...] = SOME
    logits: str = "random"  # a key of LOGITS
    layout: str = "contiguous"  # a key of LAYOUTS
    target: torch.dtype | str = torch.int64  # of class indices, or "probabilities", "one_hot"
    ignore_index: int | None = None  # None: no row is ignored
    ignored: float = 0.3  # share of the rows that are, with an ignore_index

    @property
    def class_dim(self) -> int:
        return min(len(self.shape) - 1, 1)

    @property
    def num_classes(self) -> int:
        return self.shape[self.class_dim]

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.shape[: self.class_dim] + self.shape[self.class_dim + 1 :]

    @property
    def has_class_indices(self) -> bool:
        return isinstance(self.target, torch.dtype)


ALL = (F64, F32, BF16, F16)
SINGLE = (F32, BF16, F16)  # all that accumulate in float32

CASES = (
    # The number of classes: every vector width, its tails, and real vocabularies.
    Case("one_class", (5, 1), "loss and gradient are 0", ALL, EVERY),
    Case("two_classes", (64, 2), "shorter than any vector", ALL, EVERY),
    Case("three_classes", (33, 3), "an odd row shorter than any vector", SINGLE),
    Case("ten_classes", (64, 10), "digits", ALL, EVERY, ignore_index=-100),
    Case("seventeen", (9, 17), "one vector of 16 and a tail of one", ALL, EVERY),
    Case("thirty_one", (8, 31), "the longest tail", SINGLE),
    Case("thousand", (12, 1000), "ImageNet", ALL, EVERY, ignore_index=-100),
    Case("gpt2", (3, 50257), "an odd vocabulary", SINGLE),
    Case("gpt2_equal", (2, 50257), "long sums that drift one way", (F32, BF16), SUMS, "equal"),
    Case("llama3", (2, 128256), "as many rows as threads", SINGLE),
    Case("one_long_row", (1, 300_001), "one row feeds every thread", (F64, F32, BF16)),
    Case("many_short_rows", (20_000, 3), "overhead counts", (F32, BF16)),
    Case("many_rows", (3001, 21), "more rows than a tile, no multiple of it", SINGLE),
    # Where the classes lie.
    Case("unbatched", (11,), "a single row, the class dimension first", ALL, EVERY),
    Case("sequence", (4, 7, 9), "classes strided, neighbours in d1", ALL, EVERY),
    Case(
        "image", (2, 21, 6, 11), "positions no multiple of a vector", ALL, EVERY, ignore_index=255
    ),
    Case("large_image", (1, 19, 70, 64), "more positions than one tile", (F32, BF16)),
    Case("deep_image", (2, 1000, 3, 3), "many classes, few positions", (F32, BF16)),
    Case("many_images", (90, 40, 3), "runs of positions shorter than a vector", ALL, EVERY),
    Case("deep_equal", (1, 50257, 2), "long sums that drift one way", (F32, BF16), SUMS, "equal"),
    Case("volume", (2, 5, 3, 4, 5), "three spatial dimensions", (F32, BF16)),
    Case("one_position", (6, 33, 1), "a spatial dimension of size 1", (F32,)),
    # Strides: each must give the numbers of the contiguous copy.
    Case("transposed", (37, 50), "classes strided", SINGLE, layout="transposed"),
    Case("offset_one", (9, 1000), "rows at any alignment", ALL, layout="offset_one"),
    Case("sliced", (9, 1000), "padding between the rows", SINGLE, layout="sliced"),
    Case("every_second_row", (9, 65), "a row stride of two rows", (F32,), layout="every_second"),
    Case("expanded", (6, 129), "one row seen six times, stride 0", (F32, BF16), layout="expanded"),
    Case("channels_last", (2, 21, 5, 7), "classes last in memory", SINGLE, layout="channels_last"),
    Case(
        "language_model", (3, 257, 8), "(B, T, V) seen as (B, V, T)", SINGLE, layout="channels_last"
    ),
    Case(
        "every_second_pixel",
        (2, 21, 5, 6),
        "a spatial stride of two",
        SINGLE,
        layout="every_second",
    ),
    Case("expanded_pixels", (2, 21, 5, 6), "stride 0", (F32,), layout="expanded"),
    # Values.
    Case("peaked", (16, 1000), "lse - z and 1 - p cancel", ALL, EVERY, "peaked"),
    Case("peaked_image", (2, 21, 6, 11), "with strided classes", (F64, F32, BF16), EVERY, "peaked"),
    Case("certain", (16, 100), "p = 1 or p = 0", ALL, EVERY, "extreme"),
    Case("offset_rows", (16, 100), "rows around +-1e4", ALL, EVERY, "offset"),
    Case("equal", (7, 129), "uniform rows", SINGLE, logits="equal"),
    Case("masked", (16, 129), "p = 0, gradient 0", ALL, EVERY, "masked"),
    Case("masked_image", (2, 21, 6, 11), "with strided classes", (F32,), EVERY, "masked"),
    Case("masked_start", (4, 5000), "vectors of -inf alone", (F32, BF16), logits="masked_start"),
    Case(
        "masked_but_one",
        (6, 40),
        "one class left: p = 1",
        (F64, F32, BF16),
        EVERY,
        "masked_but_one",
    ),
    Case("masked_target", (16, 129), "loss inf, gradient finite", SINGLE, ROWS, "masked_target"),
    Case("no_softmax", (12, 129), "NaN in such rows alone", ALL, ROWS, "no_softmax"),
    Case(
        "no_softmax_image", (2, 21, 6, 11), "with strided classes", (F32, BF16), ROWS, "no_softmax"
    ),
    Case(
        "no_softmax_ignored",
        (40, 129),
        "an ignored row may hold anything",
        SINGLE,
        EVERY,
        "no_softmax_ignored",
        ignore_index=-100,
    ),
    # Class indices.
    Case(
        "uint8_target",
        (64, 21),
        "masks are stored so",
        (F32,),
        target=torch.uint8,
        ignore_index=255,
    ),
    Case(
        "int32_target", (64, 21), "half the bytes", (F32, BF16), target=torch.int32, ignore_index=-1
    ),
    Case(
        "int32_target_image",
        (2, 21, 5, 4),
        "a strided int32 target",
        (F32,),
        target=torch.int32,
        ignore_index=255,
    ),
    Case("ignored_class", (40, 7), "ignore_index is a valid class", (F32,), EVERY, ignore_index=3),
    Case("ignored_far", (40, 7), "class 0 in 32 bits alone", (F32,), ignore_index=2**32),
    Case(
        "all_ignored",
        (6, 33),
        "mean NaN, gradient 0",
        SINGLE,
        EVERY,
        ignore_index=-100,
        ignored=1.0,
    ),
    # Probabilities.
    Case("probabilities", (9, 33), "need not add up to 1", ALL, EVERY, target="probabilities"),
    Case("one_hot", (9, 33), "mostly 0", SINGLE, EVERY, target="one_hot"),
    Case(
        "one_hot_masked",
        (9, 33),
        "0 * inf contributes 0",
        (F32, BF16),
        EVERY,
        "masked",
        target="one_hot",
    ),
    Case("distillation", (3, 5003), "a teacher over a vocabulary", SINGLE, target="probabilities"),
    Case("soft_image", (2, 21, 6, 11), "both tensors strided", SINGLE, target="probabilities"),
    Case(
        "soft_channels_last",
        (2, 21, 6, 11),
        "laid out unlike the target",
        (F32,),
        layout="channels_last",
        target="probabilities",
    ),
    Case("soft_unbatched", (11,), "a single distribution", (F32,), EVERY, target="probabilities"),
    # Nothing to do.
    Case("no_rows", (0, 7), "mean NaN, sum 0", SINGLE, EVERY),
    Case("no_batch", (0, 7, 3), "the same with positions", (F32,), EVERY),
    Case("no_positions", (2, 3, 5, 0), "an empty image", (F32,), EVERY),
    Case("no_rows_soft", (0, 7), "with probabilities", (F32,), EVERY, target="probabilities"),
    Case(
        "no_classes",
        (5, 0),
        "legal if all is ignored",
        (F32,),
        EVERY,
        ignore_index=-100,
        ignored=1.0,
    ),
)
BY_NAME = {case.name: case for case in CASES}


@dataclass(frozen=True)
class Problem:
    """A case under one option: `cross_entropy(*problem.tensors, **problem.arguments)`."""

    case: Case
    option: Option
    input: Tensor
    target: Tensor
    weight: Tensor | None
    arguments: MappingProxyType
    grad_loss: Tensor  # of the shape of the loss, float64

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.input, self.target, self.weight


def make_problem(
    case: Case, dtype: torch.dtype, option: Option, device: torch.device | str = "cpu"
) -> Problem:
    """Deterministic: the same names give the same numbers, whatever ran before."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{case.name}/{option.name}".encode()))
    target = _make_target(case, generator)
    logits = LOGITS[case.logits](case, target, generator)
    weight = None
    if option.weight is not None:
        weight = WEIGHTS[option.weight](torch.rand(case.num_classes, generator=generator))
        weight = weight.to(dtype).to(device)
    arguments = dict(option.arguments)
    if case.ignore_index is not None:
        arguments["ignore_index"] = case.ignore_index
    reduced = arguments.get("reduction", "mean") != "none"
    # Of both signs, and the same number in float32 and float64.
    grad_loss = torch.randn(() if reduced else case.row_shape, generator=generator).double()
    input = LAYOUTS[case.layout](logits.movedim(-1, case.class_dim).to(dtype).to(device))
    if not case.has_class_indices:
        target = target.movedim(-1, case.class_dim).contiguous().to(dtype)
    return Problem(
        case,
        option,
        input,
        target.to(device),
        weight,
        MappingProxyType(arguments),
        grad_loss.to(device),
    )


WEIGHTS = {
    "positive": lambda uniform: 0.5 + 1.5 * uniform,
    "zeros": lambda uniform: torch.where(uniform < 0.4, 0.0, uniform),
    "signed": lambda uniform: 2 * uniform - 1,
}


def _make_target(case: Case, generator: torch.Generator) -> Tensor:
    """Class indices of shape `row_shape`, or probabilities with the classes last."""
    if case.target == "probabilities":
        return torch.rand(*case.row_shape, case.num_classes, generator=generator)
    shape, num_classes = case.row_shape, case.num_classes
    target = torch.randint(max(num_classes, 1), shape, generator=generator)
    if case.target == "one_hot":
        return torch.nn.functional.one_hot(target, num_classes).float()
    if case.ignore_index is not None:
        ignored = torch.rand(shape, generator=generator) < case.ignored
        target = torch.where(ignored, case.ignore_index, target)
    return target.to(case.target)


def _target_class(case: Case, target: Tensor) -> Tensor:
    """The class [rows, 1] that the logits of a row favour; any class where there is none."""
    if not case.has_class_indices:
        return target.argmax(-1, keepdim=True)
    return target.long().clamp(0, case.num_classes - 1).unsqueeze(-1)


# Each gives logits with the classes last: [*row_shape, C].


def _random(case: Case, target: Tensor, generator: torch.Generator) -> Tensor:
    # Probabilities over many orders of magnitude: near-uniform rows test little.
    return 3 * torch.randn(*case.row_shape, case.num_classes, generator=generator)


def _peaked(case: Case, target: Tensor, generator: torch.Generator) -> Tensor:
    logits = torch.randn(*case.row_shape, case.num_classes, generator=generator)
    gap = 14 + 10 * torch.rand(*case.row_shape, 1, generator=generator)
    return logits.scatter(-1, _target_class(case, target), gap)


def _extreme(case: Case, target: Tensor, generator: torch.Generator) -> Tensor:
    logits = _random(case, target, generator)
    # Half of the rows put everything on the target, the others on another class.
    favourite = _target_class(case, target)
    other = (favourite + 1) % case.num_classes
    wrong = torch.rand(favourite.shape, generator=generator) < 0.5
    return logits.scatter(-1, torch.where(wrong, other, favourite), 1e4)


def _offset(case: Case, target: Tensor, generator: torch.Generator) -> Tensor:
    center = 2e4 * torch.rand(*case.row_shape, 1, generator=generator) - 1e4
    return _random(case, target, generator) + center


def _equal(case: Case, target: Tensor, generator: torch.Generator) -> Tensor:
    return torch.full((*case.row_shape, case.num_classes), 0.7)


def _masked(case: Case, target: Tensor, generator: torch.Generator) -> Tensor:
    logits = _random(case, target, generator)
    masked = torch.rand(logits.shape, generator=generator) < 0.5
    masked.scatter_(-1, _target_class(case, target), False)
    return logits.masked_fill(masked, -INF)


def _masked_start(case: Case, target: Tensor, generator: torch.Generator) -> Tensor:
    logits = _random(case, target, generator)
    masked = (torch.arange(case.num_classes) < 4 * case.num_classes // 5).expand_as(logits).clone()
    masked.scatter_(-1, _target_class(case, target), False)
    return logits.masked_fill(masked, -INF)


def _masked_but_one(case: Case, target: Tensor, generator: torch.Generator) -> Tensor:
    favourite = _target_class(case, target)
    return torch.full((*case.row_shape, case.num_classes), -INF).scatter(-1, favourite, 1.5)


def _masked_target(case: Case, target: Tensor, generator: torch.Generator) -> Tensor:
    logits = _random(case, target, generator)
    return torch.cat([logits[:8].scatter(-1, _target_class(case, target)[:8], -INF), logits[8:]])


def _no_softmax(case: Case, target: Tensor, generator: torch.Generator) -> Tensor:
    logits = _random(case, target, generator)
    rows = logits.view(-1, case.num_classes)
    rows[0] = -INF
    rows[2, case.num_classes // 2] = float("nan")
    rows[4, case.num_classes - 1] = INF
    rows[6, 0], rows[6, 1] = INF, INF
    rows[7] = float("nan")
    rows[9] = INF
    return logits


def _no_softmax_ignored(case: Case, target: Tensor, generator: torch.Generator) -> Tensor:
    logits = _random(case, target, generator)
    ignored = (target == case.ignore_index).unsqueeze(-1)
    return torch.where(ignored, torch.tensor([-INF, INF, float("nan")]).repeat(43), logits)


LOGITS = {
    "random": _random,
    "peaked": _peaked,
    "extreme": _extreme,
    "offset": _offset,
    "equal": _equal,
    "masked": _masked,
    "masked_start": _masked_start,
    "masked_but_one": _masked_but_one,
    "masked_target": _masked_target,
    "no_softmax": _no_softmax,
    "no_softmax_ignored": _no_softmax_ignored,
}


# Each gives a tensor of the same shape; of the same numbers too, apart from `expanded`.


def _transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def _offset_one(x: Tensor) -> Tensor:
    storage = x.new_full((x.numel() + 1,), 99)  # no class index, and larger than any logit
    storage[1:] = x.flatten()
    return storage[1:].view(x.shape)


def _sliced(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (3, 2), value=float("nan"))[..., 3:-2]


def _every_second(x: Tensor) -> Tensor:
    if x.dim() == 2:
        return x.repeat_interleave(2, 0)[::2]
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)[..., ::2, ::2]


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand_as(x) if x.dim() == 2 else x[..., :1, :1].expand_as(x)


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS = {
    "contiguous": Tensor.contiguous,
    "transposed": _transposed,
    "offset_one": _offset_one,
    "sliced": _sliced,
    "every_second": _every_second,
    "expanded": _expanded,
    "channels_last": _channels_last,
}


def all_problems(*names: str) -> list[tuple[Case, torch.dtype, Option]]:
    """Every row of the table, or those named, under each of its dtypes and options."""
    return [
        (case, dtype, OPTIONS[name])
        for case in (CASES if not names else [BY_NAME[name] for name in names])
        for dtype in case.dtypes
        for name in case.options
    ]


def problem_id(value: object) -> str | None:
    if isinstance(value, (Case, Option)):
        return value.name
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None
