"""inplace=True: the call consumes the logits, their memory becomes their gradient's."""

import pytest
import torch
from accuracy import assert_same_bits
from torch import Tensor
from torch.autograd import forward_ad

import torchce_cuda as ce
from torchce_cuda import _ops

INF, NAN = float("inf"), float("nan")
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
DTYPES = pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=["f64", "f32", "bf16", "f16"])
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
OPTION_SETS = {
    "plain": {},
    "focal": {"gamma": 2.0},
    "smoothing": {"label_smoothing": 0.1},
    "everything": {"gamma": 1.5, "label_smoothing": 0.1, "z_loss": 1e-3, "logit_softcap": 20.0},
}


class Source(torch.autograd.Function):
    """Makes logits that are no leaf, saves nothing of them and keeps the gradient as it arrives."""

    @staticmethod
    def forward(ctx, x, received):
        ctx.received = received
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.received.append(grad)
        return grad.clone(), None


def make_logits(shape: tuple[int, ...], dtype: torch.dtype, device) -> tuple[Tensor, Tensor, list]:
    """A leaf, logits made of it, and the list that will hold the gradient of the logits."""
    leaf = (3 * torch.randn(shape, device=device)).to(dtype).requires_grad_()
    received = []
    return leaf, Source.apply(leaf, received), received


def make_target(shape: tuple[int, ...], device) -> Tensor:
    target = torch.randint(shape[1], (shape[0], *shape[2:]), device=device)
    target.view(-1)[::3] = -100
    return target


@DTYPES
@REDUCTIONS
@pytest.mark.parametrize("shape", [(9, 129), (2, 21, 5, 4), (3, 2), (1, 70_001)], ids=str)
@pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS)
def test_the_gradient_is_in_the_memory_of_the_logits(
    dtype: torch.dtype, reduction: str, shape: tuple[int, ...], options: dict, device: torch.device
) -> None:
    leaf, logits, received = make_logits(shape, dtype, device)
    target = make_target(shape, device)
    address = logits.data_ptr()
    loss = ce.cross_entropy(logits, target, reduction=reduction, inplace=True, **options)
    grad_loss = torch.randn_like(loss)
    loss.backward(grad_loss)
    assert received[0].data_ptr() == address

    expected = leaf.detach().clone().requires_grad_()
    expected_loss = ce.cross_entropy(expected, target, reduction=reduction, **options)
    expected_loss.backward(grad_loss)
    assert_same_bits(loss.detach(), expected_loss.detach())
    # With a scalar loss the upstream gradient comes after rounding, without inplace before.
    eps = torch.finfo(dtype).eps
    atol = eps * expected.grad.abs().max().item()
    torch.testing.assert_close(leaf.grad, expected.grad, rtol=3 * eps, atol=atol)
    ignored = leaf.grad.movedim(1, -1)[target == -100]
    assert torch.equal(ignored, torch.zeros_like(ignored))


@DTYPES
def test_probabilities(dtype: torch.dtype, device: torch.device) -> None:
    leaf, logits, received = make_logits((6, 33), dtype, device)
    target = torch.rand(6, 33, device=device).to(dtype)
    weight = torch.rand(33, device=device).to(dtype)
    address = logits.data_ptr()
    ce.cross_entropy(logits, target, weight, gamma=2.0, inplace=True).backward()
    assert received[0].data_ptr() == address
    expected = leaf.detach().clone().requires_grad_()
    ce.cross_entropy(expected, target, weight, gamma=2.0).backward()
    torch.testing.assert_close(leaf.grad, expected.grad, rtol=2e-6, atol=0)


@REDUCTIONS
def test_float16_waits_for_the_loss_scale(reduction: str, device: torch.device) -> None:
    """Rounded before they are multiplied by 65536, off-target gradients would all be 0 here."""
    rows = 64
    scale = 65536.0 / rows if reduction == "none" else 65536.0
    leaf = torch.zeros(rows, 1000, device=device)
    leaf[:, 0] = 18.0
    leaf = leaf.half().requires_grad_()
    target = torch.zeros(rows, dtype=torch.int64, device=device)
    loss = ce.cross_entropy(leaf * 1, target, reduction=reduction, inplace=True)
    loss.backward(torch.full_like(loss, scale))
    exact = leaf.detach().double().requires_grad_()
    loss = ce.cross_entropy(exact, target, reduction=reduction)
    loss.backward(torch.full_like(loss, scale))
    assert exact.grad[:, 1:].abs().max() / scale < 2**-25  # rounds to 0 in float16
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-3, atol=2**-24)


@DTYPES
@REDUCTIONS
@pytest.mark.parametrize("grad_enabled", [False, True])
def test_without_a_gradient_nothing_is_consumed(
    dtype: torch.dtype, reduction: str, grad_enabled: bool, device: torch.device
) -> None:
    logits = torch.randn(5, 7, device=device).to(dtype)
    if not grad_enabled:
        logits.requires_grad_()
    before, version = logits.detach().clone(), logits._version
    with torch.set_grad_enabled(grad_enabled):
        target = make_target((5, 7), device)
        loss = ce.cross_entropy(logits, target, reduction=reduction, inplace=True)
    assert not loss.requires_grad
    assert logits._version == version
    assert torch.equal(logits, before)


@DTYPES
@REDUCTIONS
@pytest.mark.parametrize("earlier", ["square", "exp", "softmax", "saved by a layer"])
def test_an_earlier_use_that_saved_the_logits_raises(
    dtype: torch.dtype, reduction: str, earlier: str, device: torch.device
) -> None:
    leaf = torch.randn(5, 7, device=device).to(dtype).requires_grad_()
    target = make_target((5, 7), device)
    if earlier == "square":
        logits = leaf * 1
        other = (logits * logits).sum()
    elif earlier == "exp":
        logits, other = leaf.exp(), 0.0
    elif earlier == "softmax":
        logits, other = leaf.log_softmax(1), 0.0
    else:
        logits = leaf * 1
        other = torch.nn.functional.linear(logits, torch.ones(2, 7, requires_grad=True).to(logits))
        other = other.sum() * torch.ones((), requires_grad=True)
        logits_saver = (logits * leaf).sum()
        other = other + logits_saver
    loss = ce.cross_entropy(logits, target, reduction=reduction, inplace=True).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + other).backward()


@DTYPES
@REDUCTIONS
@pytest.mark.parametrize("later", ["sum", "square", "loss", "inplace loss", "view"])
def test_a_later_use_of_the_logits_raises(
    dtype: torch.dtype, reduction: str, later: str, device: torch.device
) -> None:
    _, logits, _ = make_logits((5, 7), dtype, device)
    target = make_target((5, 7), device)
    loss = ce.cross_entropy(logits, target, reduction=reduction, inplace=True).sum()
    with pytest.raises(RuntimeError):  # at the latest in the backward pass
        other = {
            "sum": lambda: logits.sum(),
            "square": lambda: (logits * logits).sum(),
            "loss": lambda: ce.cross_entropy(logits, target),
            "inplace loss": lambda: ce.cross_entropy(logits, target, inplace=True),
            "view": lambda: logits.view(-1)[3:9].sum(),
        }[later]()
        (loss + other).backward()


@DTYPES
@REDUCTIONS
def test_a_later_use_alone_raises(dtype: torch.dtype, reduction: str, device: torch.device) -> None:
    """Even where the loss takes no part in the backward pass."""
    _, logits, _ = make_logits((5, 7), dtype, device)
    ce.cross_entropy(logits, make_target((5, 7), device), reduction=reduction, inplace=True)
    with pytest.raises(RuntimeError):
        logits.sum().backward()


@DTYPES
@REDUCTIONS
def test_writing_to_the_logits_before_backward_raises(
    dtype: torch.dtype, reduction: str, device: torch.device
) -> None:
    _, logits, _ = make_logits((5, 7), dtype, device)
    loss = ce.cross_entropy(logits, make_target((5, 7), device), reduction=reduction, inplace=True)
    with pytest.raises(RuntimeError):
        with torch.no_grad():
            logits.zero_()
        loss.sum().backward()


@DTYPES
@REDUCTIONS
def test_a_second_backward_raises(dtype: torch.dtype, reduction: str, device: torch.device) -> None:
    leaf, logits, _ = make_logits((5, 7), dtype, device)
    target = make_target((5, 7), device)
    loss = ce.cross_entropy(logits, target, reduction=reduction, inplace=True).sum()
    loss.backward(retain_graph=True)
    first = leaf.grad.clone()
    with pytest.raises(RuntimeError):
        loss.backward()
    assert torch.equal(leaf.grad, first)


@REDUCTIONS
def test_a_second_derivative_raises(reduction: str, device: torch.device) -> None:
    leaf, logits, _ = make_logits((5, 7), F32, device)
    target = make_target((5, 7), device)
    loss = ce.cross_entropy(logits, target, reduction=reduction, inplace=True).sum()
    with pytest.raises(RuntimeError, match="inplace=False"):
        torch.autograd.grad(loss, leaf, create_graph=True)


def refused_inputs(device) -> dict[str, Tensor]:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, requires_grad=True)

    return {
        "a leaf": leaf(4, 5),
        "a view of a leaf": leaf(20).view(4, 5),
        "expanded": (leaf(1, 5) * 1).expand(4, 5),
        "transposed columns": (leaf(5, 8) * 1)[:, ::2].T,
        "every second column": (leaf(4, 10) * 1)[:, ::2],
        "some rows": (leaf(8, 5) * 1)[2:6],
        "a column range": (leaf(4, 8) * 1)[:, :5],
        "an offset": (leaf(21) * 1)[1:].view(4, 5),
    }


@pytest.mark.parametrize("name", refused_inputs("cpu"))
@REDUCTIONS
def test_what_cannot_be_overwritten_is_refused(
    name: str, reduction: str, device: torch.device
) -> None:
    logits = refused_inputs(device)[name]
    before, version = logits.detach().clone(), logits._version
    target = torch.tensor([0, 4, 2, 1], device=device)
    with pytest.raises(RuntimeError, match="(?s)inplace.*(pass|inplace=False)"):
        ce.cross_entropy(logits, target, reduction=reduction, inplace=True)
    assert torch.equal(logits, before)
    assert logits._version == version
    # It is only refused in place.
    ce.cross_entropy(logits, target, reduction=reduction).sum().backward()


@pytest.mark.parametrize("name", ["target", "weight", "normalizer"])
def test_gradients_beside_that_of_the_logits_are_refused(name: str, device: torch.device) -> None:
    """Their composition keeps the logits, so there is nothing to save."""
    logits = torch.randn(4, 3, device=device, requires_grad=True)
    others = {"target": torch.rand(4, 3), "weight": torch.rand(3), "normalizer": torch.tensor(2.0)}
    others = {key: value.to(device) for key, value in others.items()}
    others[name].requires_grad_()
    with pytest.raises(RuntimeError, match=f"(?s)inplace: {name} requires grad.*detach"):
        ce.cross_entropy(1 * logits, **others, inplace=True)
    with torch.no_grad():
        ce.cross_entropy(1 * logits, **others, inplace=True)
    with forward_ad.dual_level():
        ce.cross_entropy(1 * logits, **others, inplace=True)
    compiled = torch.compile(ce.cross_entropy, backend="eager", fullgraph=True)
    compiled(1 * logits, **others, inplace=True).backward()  # where it is ignored
    assert others[name].grad is not None


@DTYPES
@REDUCTIONS
@pytest.mark.parametrize("view", ["view", "flatten", "unflatten", "view of view"])
def test_a_view_of_the_whole_works(
    dtype: torch.dtype, reduction: str, view: str, device: torch.device
) -> None:
    """As the logits of a language model are: (B, T, V) seen as (B T, V)."""
    leaf, whole, received = make_logits((3, 4, 17), dtype, device)
    logits = {
        "view": lambda: whole.view(-1, 17),
        "flatten": lambda: whole.flatten(0, 1),
        "unflatten": lambda: whole.view(12, 17).unflatten(0, (12,)),
        "view of view": lambda: whole.view(-1).view(12, 17),
    }[view]()
    target = make_target((12, 17), device)
    address = whole.data_ptr()
    ce.cross_entropy(logits, target, reduction=reduction, inplace=True).sum().backward()
    assert received[0].data_ptr() == address
    expected = leaf.detach().clone().requires_grad_()
    ce.cross_entropy(expected.view(-1, 17), target, reduction=reduction).sum().backward()
    torch.testing.assert_close(leaf.grad, expected.grad, rtol=3 * torch.finfo(dtype).eps, atol=0)


@REDUCTIONS
def test_a_later_use_of_the_whole_raises(reduction: str, device: torch.device) -> None:
    _, whole, _ = make_logits((3, 4, 17), F32, device)
    target = make_target((12, 17), device)
    loss = ce.cross_entropy(whole.view(-1, 17), target, reduction=reduction, inplace=True).sum()
    with pytest.raises(RuntimeError):
        (loss + whole.sum()).backward()


def test_training_a_layer(device: torch.device) -> None:
    """The usual place: the output of a linear layer, which needs its input and not its output."""
    layer = torch.nn.Linear(8, 33).to(device)
    data, target = torch.randn(16, 8, device=device), torch.randint(33, (16,), device=device)
    ce.cross_entropy(layer(data), target).backward()
    expected = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    ce.CrossEntropyLoss(inplace=True)(layer(data), target).backward()
    for parameter, grad in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


@DTYPES
@pytest.mark.parametrize("scale", [0.0, -2.0, 0.1])
def test_any_upstream_gradient(dtype: torch.dtype, scale: float, device: torch.device) -> None:
    leaf, logits, _ = make_logits((5, 7), dtype, device)
    target = make_target((5, 7), device)
    (scale * ce.cross_entropy(logits, target, inplace=True)).backward()
    expected = leaf.detach().clone().requires_grad_()
    (scale * ce.cross_entropy(expected, target)).backward()
    torch.testing.assert_close(leaf.grad, expected.grad, rtol=3 * torch.finfo(dtype).eps, atol=0)


SCALED = [1, 7, 8, 9, 23, 1001, 1_200_003]  # the last: more packets than the kernel has threads


@DTYPES
@pytest.mark.parametrize("count", SCALED)
def test_scaling_a_gradient(dtype: torch.dtype, count: int, device: torch.device) -> None:
    """What backward does when the upstream gradient arrives: wherever the gradient lies, each value
    once, and none beside it; 0 stays 0, so that an ignored row does."""
    # the kernels on the host take a second for the longest
    offsets = [0, 1, 3, 8] if count < 10_000 else [1]
    special = torch.tensor([0.0, -0.0, INF, -INF, NAN], device=device, dtype=dtype)
    for offset in offsets:
        memory = torch.randn(offset + count + 9, device=device).to(dtype)
        memory[torch.rand(memory.shape, device=device) < 0.2] = 0
        place = slice(offset, offset + count)
        memory[place][: len(special)] = special[:count]
        for factor in (1.0, -0.375, 0.0, INF, NAN) if count < 10_000 else (-0.375,):
            scaled = memory.clone()
            by = torch.tensor(factor, device=device, dtype=torch.promote_types(dtype, F32))
            _ops.scale_(scaled[place], by)
            expected = memory.clone()
            if factor != 1:
                values = memory[place]
                expected[place] = torch.where(values == 0, values, (values * by).to(dtype))
            assert torch.equal(scaled.isnan(), expected.isnan())
            assert_same_bits(scaled.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


def test_all_ignored(device: torch.device) -> None:
    """A mean of nothing is NaN; its gradient is exactly 0 all the same."""
    for dtype in (F32, F16):
        leaf, logits, _ = make_logits((5, 7), dtype, device)
        target = torch.full((5,), -100, device=device)
        loss = ce.cross_entropy(logits, target, inplace=True)
        assert loss.isnan()
        (3 * loss).backward()
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))
