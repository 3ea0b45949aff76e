"""Bad input: the exception class of PyTorch, and a message that says how to do better."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torchce_cuda as ce

INF, NAN = float("inf"), float("nan")
LOGITS = torch.randn(4, 3)
TARGET = torch.tensor([0, 1, 2, 0])
SOFT = torch.rand(4, 3)
IMAGE = torch.randn(2, 3, 4)


@dataclass(frozen=True)
class BadCall:
    """A call that must raise; in `message`, between bars: what, which value, what is allowed."""

    message: str
    arguments: tuple
    keywords: dict
    error: type[Exception] | None = None  # None: the class that PyTorch raises

    def check(self, error: type[Exception], **more) -> None:
        with pytest.raises(error) as raised:
            ce.cross_entropy(*self.arguments, **self.keywords, **more)
        assert raised.type is error
        for word in self.message.split("|"):
            assert word in str(raised.value)


def bad(message: str, *arguments, **keywords) -> BadCall:
    return BadCall(message, arguments, keywords)


def bad_option(error: type[Exception], message: str, **keywords) -> BadCall:
    return BadCall(message, (LOGITS,), keywords, error)


AS_PYTORCH = (
    bad("reduction|'batchmean'|'none'|'mean'|'sum'", LOGITS, TARGET, reduction="batchmean"),
    bad("reduction|'MEAN'|'mean'", LOGITS, TARGET, reduction="MEAN"),
    bad("reduction|''|'mean'", LOGITS, TARGET, reduction=""),
    bad("reduction|None|'mean'", LOGITS, TARGET, reduction=None),
    bad("reduction|1|'mean'", LOGITS, TARGET, reduction=1),
    bad("reduction|'first of all'", LOGITS.long(), TARGET[:2], reduction="first of all"),
    bad("input|int64|float32", LOGITS.long(), TARGET),
    bad("input|bool|float32", LOGITS > 0, TARGET),
    bad("input|complex64|float32", LOGITS + 0j, TARGET),
    bad("input|Tensor|list", [1.0, 2.0], TARGET),
    bad("input|Tensor|NoneType", None, TARGET),
    bad("input|(N, C)", torch.tensor(1.0), torch.tensor(0)),
    bad("target|Tensor|list", LOGITS, [0, 1, 2, 0]),
    bad("target|Tensor|NoneType", LOGITS, None),
    bad("target|[4, 1]|[4, 3]", LOGITS, TARGET[:, None]),
    bad("target|[]|4", LOGITS, torch.tensor(0)),
    bad("target|[3]|4", LOGITS, TARGET[:3]),
    bad("target|[5]|4", LOGITS, torch.zeros(5, dtype=torch.int64)),
    bad("target|[1, 3]|4", LOGITS, SOFT[:1]),
    bad("target|[4, 4]|[4, 3]", LOGITS, torch.rand(4, 4)),
    bad("target|[2, 5]|[2, 3, 4]", IMAGE, torch.zeros(2, 5, dtype=torch.int64)),
    bad("target|[3, 4]|2", IMAGE, torch.zeros(3, 4, dtype=torch.int64)),
    bad("target|[2, 4, 1]|[2, 3, 4]", IMAGE, torch.zeros(2, 4, 1, dtype=torch.int64)),
    bad("target|[2]|[3]", LOGITS[0], TARGET[:2]),
    bad("target|[4, 3]|int64|floating", LOGITS, SOFT.long()),
    bad("target|[4, 1]|int64|floating", LOGITS[:, :1], TARGET[:, None]),
    bad("target|[1]|int64|floating", LOGITS[0, :1], TARGET[:1]),
    bad("target|float32|int64", LOGITS, TARGET.float()),
    bad("target|float16|int64", LOGITS, TARGET.half()),
    bad("target|bool|int64", LOGITS, TARGET > 0),
    bad("target|int16|int64", LOGITS, TARGET.short()),
    bad("target|complex64|int64", LOGITS, TARGET + 0j),
    bad("weight|Tensor|list", LOGITS, TARGET, [1.0, 1.0, 1.0]),
    bad("weight|[1, 3]|[3]", LOGITS, TARGET, torch.ones(1, 3)),
    bad("weight|[]|[3]", LOGITS, TARGET, torch.tensor(1.0)),
    bad("weight|[2]|[3]", LOGITS, TARGET, torch.ones(2)),
    bad("weight|[4]|[3]", LOGITS, TARGET, torch.ones(4)),
    bad("weight|[2]|[3]", LOGITS, SOFT, torch.ones(2)),
    bad("weight|int64|floating", LOGITS, TARGET, torch.ones(3, dtype=torch.int64)),
    bad("weight|requires grad|detach", LOGITS, TARGET, torch.ones(3, requires_grad=True)),
    bad("ignore_index|0|probabilities", LOGITS, SOFT, ignore_index=0),
    bad("ignore_index|int|float", LOGITS, TARGET, ignore_index=1.0),
    bad("ignore_index|int|NoneType", LOGITS, TARGET, ignore_index=None),
    bad("ignore_index|int|bool", LOGITS, TARGET, ignore_index=True),
    bad("ignore_index|9223372036854775808|64", LOGITS, TARGET, ignore_index=2**63),
    bad("label_smoothing|1.5|between 0 and 1", LOGITS, TARGET, label_smoothing=1.5),
    bad("label_smoothing|1.5|between 0 and 1", LOGITS, SOFT, label_smoothing=1.5),
    bad("label_smoothing|float|NoneType", LOGITS, TARGET, label_smoothing=None),
    bad("label_smoothing|float|str", LOGITS, TARGET, label_smoothing="0.1"),
    bad("weight|meta|cpu", LOGITS, TARGET, torch.ones(3, device="meta")),
    bad("target|meta|cpu", LOGITS, TARGET.to("meta")),
    bad("target|cpu|meta", LOGITS.to("meta"), TARGET),
)

# What PyTorch does not have, or accepts in silence.
EXTRAS = (
    bad_option(RuntimeError, "label_smoothing|-0.1|between 0 and 1", label_smoothing=-0.1),
    bad_option(RuntimeError, "label_smoothing|nan|between 0 and 1", label_smoothing=NAN),
    bad_option(ValueError, "gamma|-1|>= 0", gamma=-1.0),
    bad_option(ValueError, "gamma|nan|>= 0", gamma=NAN),
    bad_option(ValueError, "gamma|inf|finite", gamma=INF),
    bad_option(ValueError, "gamma|1e+39|finite", gamma=1e39),  # in float32 it is not
    bad_option(TypeError, "gamma|float|str", gamma="2"),
    bad_option(TypeError, "gamma|float|NoneType", gamma=None),
    bad_option(TypeError, "gamma|float|Tensor", gamma=torch.tensor(2.0)),
    bad_option(TypeError, "z_loss|float|str", z_loss="0"),
    bad_option(TypeError, "z_loss|float|NoneType", z_loss=None),
    bad_option(ValueError, "z_loss|nan|finite", z_loss=NAN),
    bad_option(ValueError, "z_loss|inf|finite", z_loss=INF),
    bad_option(ValueError, "logit_scale|1e+39|finite", logit_scale=1e39),
    bad_option(TypeError, "logit_scale|float|NoneType", logit_scale=None),
    bad_option(ValueError, "logit_scale|nan|finite", logit_scale=NAN),
    bad_option(ValueError, "logit_scale|-inf|finite", logit_scale=-INF),
    bad_option(ValueError, "logit_softcap|0|> 0", logit_softcap=0.0),
    bad_option(ValueError, "logit_softcap|-1|> 0", logit_softcap=-1.0),
    bad_option(ValueError, "logit_softcap|inf|finite", logit_softcap=INF),
    bad_option(ValueError, "logit_softcap|1e-50|> 0", logit_softcap=1e-50),
    bad_option(ValueError, "logit_softcap|1e+39|finite", logit_softcap=1e39),
    bad_option(TypeError, "logit_softcap|float|str", logit_softcap="1"),
    bad_option(TypeError, "normalizer|float|str", normalizer="1"),
    bad_option(ValueError, "normalizer|'mean'|'sum'", normalizer=2.0, reduction="sum"),
    bad_option(ValueError, "normalizer|'mean'|'none'", normalizer=2.0, reduction="none"),
    bad_option(ValueError, "normalizer|[2]|0-d", normalizer=torch.ones(2)),
    bad_option(ValueError, "normalizer|0.0|> 0", normalizer=0.0),
    bad_option(ValueError, "normalizer|nan|finite", normalizer=NAN),
    bad_option(TypeError, "normalizer|bool|integer", normalizer=torch.tensor(True)),
    bad_option(RuntimeError, "normalizer|meta|cpu", normalizer=torch.tensor(2.0, device="meta")),
    bad_option(TypeError, "gama", gama=2.0),
)


@pytest.mark.parametrize("call", AS_PYTORCH, ids=lambda call: call.message)
@pytest.mark.parametrize("inplace", [False, True])
def test_same_class_as_pytorch(call: BadCall, inplace: bool) -> None:
    with pytest.raises(Exception) as theirs:  # noqa: B017, PT011
        F.cross_entropy(*call.arguments, **call.keywords)
    call.check(theirs.type, inplace=inplace)


@pytest.mark.parametrize("name", ["target", "weight", "normalizer"])
@pytest.mark.parametrize("route", ["forward", "two passes", "in place", "composition"])
def test_one_tensor_on_meta(name: str, route: str) -> None:
    """The dispatcher takes such a call to what knows of shapes alone, and returns garbage."""
    target = SOFT.clone().requires_grad_() if route == "composition" else TARGET
    good = {"target": target, "weight": torch.ones(3), "normalizer": torch.tensor(2.0)}
    for logits in (torch.randn(4, 3), torch.randn(2000, 3)):
        rows = logits.shape[0] // 4
        good["target"] = torch.cat([target] * rows)
        logits.requires_grad_(route != "forward")
        with pytest.raises(RuntimeError, match=f"{name} is on meta, but input is on cpu"):
            ce.cross_entropy(
                1 * logits, **good | {name: good[name].to("meta")}, inplace=route == "in place"
            )


@pytest.mark.parametrize("call", EXTRAS, ids=lambda call: call.message)
@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["indices", "probabilities"])
def test_extras(call: BadCall, target: Tensor) -> None:
    call.check(call.error, target=target)


def test_options_are_keywords() -> None:
    """The legacy positional arguments of PyTorch would be read as others here."""
    with pytest.raises(TypeError):
        ce.cross_entropy(LOGITS, TARGET, None, True)


SHAPES = {(3,): (), (4, 3): (4,), (2, 3, 5): (2, 5), (2, 3, 4, 5): (2, 4, 5)}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_target_out_of_range(shape: tuple[int, ...], reduction: str, device: torch.device) -> None:
    """Whatever the options, dtypes and position: an error before anything is read or written."""
    options = [{}, {"label_smoothing": 0.1}, {"gamma": 2.0}, {"gamma": 2.0, "label_smoothing": 1.0}]
    bad_indices = [
        (torch.int64, 3),
        (torch.int64, -1),
        (torch.int64, 2**32),
        (torch.int64, 2**32 + 1),
        (torch.int64, -(2**63)),
        (torch.int64, 2**63 - 1),
        (torch.int32, 3),
        (torch.int32, -7),
        (torch.uint8, 3),
        (torch.uint8, 156),  # -100 in eight bits
        (torch.uint8, 255),
    ]
    weight = torch.rand(3, device=device)
    for keywords, (dtype, bad), float_dtype in product(
        options, bad_indices, (torch.float32, torch.bfloat16)
    ):
        source = torch.randn(shape, device=device, requires_grad=True)
        logits = (source * 1).to(float_dtype)
        before = logits.detach().clone()
        target = torch.zeros(SHAPES[shape], dtype=dtype, device=device)
        target.view(-1)[-1] = bad
        for inplace, class_weight in ((False, None), (True, None), (True, weight)):
            with pytest.raises(IndexError, match=f"Target {bad} is out of bounds"):
                ce.cross_entropy(
                    logits, target, class_weight, reduction=reduction, inplace=inplace, **keywords
                )
            assert torch.equal(logits, before)
            assert logits._version == before._version


@pytest.mark.parametrize("ignore_index", [-1, 255, 2**32, 2**63 - 1, -(2**63)])
def test_only_ignore_index_may_be_out_of_range(ignore_index: int, device: torch.device) -> None:
    logits, target = torch.randn(4, 3, device=device), torch.tensor([0, 1, ignore_index, 2])
    target = target.to(device)
    ce.cross_entropy(logits, target, ignore_index=ignore_index)
    for wrong in (-100, ignore_index ^ 1, ignore_index & 0xFFFF if ignore_index > 2**32 else 7):
        target[0] = wrong
        with pytest.raises(IndexError, match=f"Target {wrong} "):
            ce.cross_entropy(logits, target, ignore_index=ignore_index)


def test_out_of_range_in_a_large_target(device: torch.device) -> None:
    """Found wherever it is, also when threads share the search; the first one is named."""
    logits = torch.randn(100_003, 2, device=device)
    for rows in ([100_002], [0], [50_000, 99_999], [31, 32, 33]):
        target = torch.zeros(100_003, dtype=torch.int64, device=device)
        for row in rows:
            target[row] = 2 + row
        with pytest.raises(IndexError, match=rf"Target {2 + rows[0]} .*row {rows[0]}\b"):
            ce.cross_entropy(logits, target)


def test_each_thread_hears_of_its_own_target(device: torch.device) -> None:
    """With a look at the targets before each call, which conftest.py asks for."""
    rows, calls = 7, 20

    def heard(thread: int) -> set[str]:
        found = set()
        target = torch.zeros(rows, dtype=torch.int64, device=device)
        target[thread] = 100 + thread
        for call in range(calls):
            bad = call % 2 == 0
            try:
                ce.cross_entropy(
                    torch.zeros(rows, 3, device=device), target if bad else target.clamp(max=2)
                )
            except IndexError as error:
                assert bad
                found.add(str(error).partition(", allowed")[0])
            else:
                assert not bad
        return found

    with ThreadPoolExecutor(4) as pool:
        for thread, messages in enumerate(pool.map(heard, range(4))):
            expected = f"Target {100 + thread} is out of bounds: row {thread} of target"
            assert messages == {f"torchce_cuda: {expected}"}


def test_no_classes(device: torch.device) -> None:
    target = torch.zeros(2, dtype=torch.int64, device=device)
    with pytest.raises(IndexError, match="Target 0 is out of bounds"):
        ce.cross_entropy(torch.randn(2, 0, device=device), target)


def test_modules_raise_when_called() -> None:
    """As in PyTorch, the constructor accepts what the call refuses."""
    module = ce.CrossEntropyLoss(reduction="bad")
    with pytest.raises(ValueError, match="reduction"):
        module(LOGITS, TARGET)
    module = ce.FocalLoss(gamma=-1.0)
    with pytest.raises(ValueError, match="gamma"):
        module(LOGITS, TARGET)
