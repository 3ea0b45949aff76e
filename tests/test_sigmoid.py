"""The sigmoid losses: PyTorch's and torchvision's numbers, layouts, autograd, bad input."""

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_same_bits
from cases import BF16, F16, F32, F64
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchce_cuda as ce
from torchce_cuda import reference

pytestmark = pytest.mark.usefixtures("one_thread", "on_each_device")

DTYPES = pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
GAMMAS = [0.0, 0.3, 1.0, 2.0, 3.7]
INF, NAN = float("inf"), float("nan")


def torchvision_loss(
    input: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none"
) -> Tensor:
    """The formula of torchvision.ops.sigmoid_focal_loss, operation by operation."""
    p = torch.sigmoid(input)
    entropy = F.binary_cross_entropy_with_logits(input, target, reduction="none")
    p_of_target = p * target + (1 - p) * (1 - target)
    loss = entropy * (1 - p_of_target) ** gamma
    if alpha >= 0:
        loss = (alpha * target + (1 - alpha) * (1 - target)) * loss
    return {"none": loss, "sum": loss.sum(), "mean": loss.mean()}[reduction]


def grad_of(loss: Tensor, input: Tensor, upstream: Tensor | None = None) -> Tensor:
    (grad,) = torch.autograd.grad(loss, input, upstream)
    return grad


def largest(x: Tensor) -> float:
    return x.abs().nan_to_num(nan=INF).max().item() if x.numel() else 0.0


def check(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, also_grad=True, **options
) -> None:
    """Loss and gradient against float64: some roundings of the accumulator, one of the result.

    Each number relative to itself; but a soft label's gradient is the difference of two terms, and
    is measured by the largest.
    """
    leaf = input.detach().requires_grad_()
    loss = ce.sigmoid_focal_loss(leaf, target, weight, **options)
    exact = input.detach().double().requires_grad_()
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    truth = reference.sigmoid_focal_loss(
        exact, target.double(), None if weight is None else weight.double(), **wide
    )
    assert loss.shape == truth.shape
    assert loss.dtype == torch.promote_types(input.dtype, F32)
    gamma = options.get("gamma", 2.0)
    accumulator, result = torch.finfo(loss.dtype), torch.finfo(input.dtype)
    error = accumulator.eps * (8 + 8 * gamma + (20 * gamma if gamma not in (0, 1, 2) else 0))

    def compare(x: Tensor, y: Tensor, error: float, size: Tensor) -> None:
        torch.testing.assert_close(x.isfinite(), y.isfinite())
        kept = y.isfinite()
        assert largest(((x.double() - y) / size)[kept]) <= error

    truth_size = truth.detach().abs()
    compare(loss.detach(), truth.detach(), error, truth_size + accumulator.tiny / error)
    if not also_grad:
        return
    upstream = torch.randn(loss.shape).to(loss.dtype)
    grad, exact_grad = grad_of(loss, leaf, upstream), grad_of(truth, exact, upstream.double())
    assert (grad.dtype, grad.shape) == (input.dtype, input.shape)
    soft = ((target > 0) & (target < 1)).any()
    error += result.eps
    size = exact_grad.abs().max() if soft else exact_grad.abs()
    compare(grad, exact_grad, error, size + result.tiny / error)


def make_inputs(shape=(37, 53), dtype=F32, soft=False, spread=4.0) -> tuple[Tensor, Tensor]:
    input = (spread * torch.randn(shape)).to(dtype)
    target = torch.rand(shape) if soft else (torch.rand(shape) < 0.3).float()
    return input, target.to(dtype)


# Numbers.


@DTYPES
@REDUCTIONS
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [None, 0.25, -1])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_accuracy(dtype, reduction: str, gamma: float, alpha, soft: bool) -> None:
    input, target = make_inputs(dtype=dtype, soft=soft)
    check(input, target, gamma=gamma, alpha=alpha, reduction=reduction)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_accuracy_with_everything(gamma: float) -> None:
    input, target = make_inputs((5, 6, 17), soft=True)
    target[1] = -1
    check(
        input,
        target,
        torch.rand(6, 1),
        gamma=gamma,
        alpha=0.3,
        pos_weight=3 * torch.rand(17),
        ignore_value=-1,
    )


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_each_gradient_of_a_certain_element(gamma: float, target: float) -> None:
    """From gap 0 to 80: 1 - p would be 0 from 17 on; hard labels have no cancellation at all."""
    x = torch.linspace(-80, 80, 321, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    t = torch.full_like(x, target)
    loss = ce.sigmoid_focal_loss(x, t, gamma=gamma, reduction="none")
    truth = reference.sigmoid_focal_loss(exact, t.double(), gamma=gamma, reduction="none")
    for ours, theirs in ((loss, truth), (grad_of(loss.sum(), x), grad_of(truth.sum(), exact))):
        ours, theirs = ours.detach().double(), theirs.detach()
        normal = theirs.abs() > 1e-35
        assert largest((ours / theirs - 1)[normal]) < 2e-6 * (1 + 3 * gamma)
        assert largest(ours[~normal]) < 1e-34


@pytest.mark.parametrize("gamma", GAMMAS)
@DTYPES
def test_extreme_logits(gamma: float, dtype) -> None:
    x = torch.tensor([1e4, -1e4, 1e4, -1e4, 0.0, -0.0, 88.0, -104.0], dtype=dtype)
    t = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0], dtype=dtype)
    leaf = x.clone().requires_grad_()
    loss = ce.sigmoid_focal_loss(leaf, t, gamma=gamma, reduction="none")
    grad = grad_of(loss.sum(), leaf)
    assert loss.isfinite().all()
    assert grad.isfinite().all()
    assert loss[:2].tolist() == [0, 0]
    assert loss[2:4].tolist() == [1e4 if dtype != BF16 else 9984.0] * 2
    assert grad[:4].tolist() == [0, 0, 1, -1]


def test_infinite_logits() -> None:
    """A label that a masked logit agrees with costs nothing, where PyTorch has inf - inf."""
    x = torch.tensor([INF, -INF, INF, -INF, NAN], requires_grad=True)
    t = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])
    for gamma in GAMMAS:
        loss = ce.sigmoid_focal_loss(x, t, gamma=gamma, reduction="none")
        assert loss.tolist()[:4] == [0, 0, INF, INF]
        assert loss[4].isnan()
        grad = grad_of(loss.sum(), x)
        assert grad.tolist()[:4] == [0, 0, 1, -1]
        assert grad[4].isnan()


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@REDUCTIONS
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_as_pytorch(dtype, reduction: str, weighted: bool, soft: bool) -> None:
    input, target = make_inputs((6, 5, 4), dtype, soft)
    options = {"reduction": reduction}
    if weighted:
        options |= {
            "weight": torch.rand(5, 1, dtype=dtype),
            "pos_weight": torch.rand(4, dtype=dtype),
        }
    results = []
    for loss in (ce.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits):
        leaf = input.clone().requires_grad_()
        value = loss(leaf, target, **options)
        results.append((value, grad_of(value, leaf, torch.ones_like(value))))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("alpha", [0.25, -1])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 2.5])
@REDUCTIONS
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_as_torchvision(alpha: float, gamma: float, reduction: str, soft: bool) -> None:
    input, target = make_inputs(dtype=F64, soft=soft)
    options = {"alpha": alpha, "gamma": gamma, "reduction": reduction}
    results = []
    for loss in (ce.sigmoid_focal_loss, torchvision_loss):
        leaf = input.clone().requires_grad_()
        value = loss(leaf, target, **options)
        results.append((value, grad_of(value, leaf, torch.ones_like(value))))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


PLANTED = {
    "alpha on the wrong side": {"alpha": 0.75},
    "another gamma": {"gamma": 1.9},
    "no weight": {"weight": None},
    "no pos_weight": {"pos_weight": None},
    "a mean over ignored elements too": {"ignore_value": None},
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_found(mistake: str, monkeypatch) -> None:
    input, target = make_inputs()
    target[3] = 7
    weight, options = torch.rand(53), {"alpha": 0.25, "gamma": 2.0, "ignore_value": 7}
    options["pos_weight"] = 0.5 + torch.rand(53)
    check(input, target, weight, **options)
    right = ce.sigmoid_focal_loss

    def wrong(input, target, weight, **options):
        options |= {"weight": weight} | PLANTED[mistake]
        return right(input, target, **options)

    monkeypatch.setattr(ce, "sigmoid_focal_loss", wrong)
    with pytest.raises(AssertionError):
        check(input, target, weight, also_grad=False, **options)


def test_a_wrong_gradient_is_found(monkeypatch) -> None:
    """One element of two thousand, by 1 %."""
    input, target = make_inputs()
    right = ce.sigmoid_focal_loss

    def wrong(input, target, weight, **options):
        factor = torch.ones_like(input)
        factor[17, 5] = 1.01
        return right(input * factor + (1 - factor) * input.detach(), target, **options)

    check(input, target)
    monkeypatch.setattr(ce, "sigmoid_focal_loss", wrong)
    with pytest.raises(AssertionError):
        check(input, target)


# Sizes and layouts.


@pytest.mark.parametrize("size", [0, 1, 31, 1023, 1024, 1025, 70_001])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_sizes(size: int, gamma: float) -> None:
    input, target = make_inputs((size,))
    check(input, target, gamma=gamma, reduction="sum")
    mean = ce.sigmoid_focal_loss(input, target, gamma=gamma)
    assert mean.isnan() == (size == 0)


def strided(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, 3)], -1)[..., 0]


LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "strided": strided,
    "permuted": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "offset": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "expanded": lambda x: x[:1].expand_as(x),
}


@DTYPES
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["input", "target", "weight", "pos_weight", "all"])
def test_strides(dtype, layout: str, which: str) -> None:
    """The bits of the contiguous tensors; a sum may be in another order."""
    names = ("input", "target", "weight", "pos_weight")
    tensors = dict(zip(names, (3 * torch.randn(4, 5, 300), *torch.rand(3, 4, 5, 300)), strict=True))
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    changed = {
        name: LAYOUTS[layout](x) if which in (name, "all") else x for name, x in tensors.items()
    }
    dense = {name: x.contiguous() for name, x in changed.items()}
    upstream = torch.randn(4, 5, 300, dtype=torch.promote_types(dtype, F32))
    results = []
    for inputs in (changed, dense):
        inputs = dict(inputs)
        leaf = inputs.pop("input").detach().requires_grad_()
        loss = ce.sigmoid_focal_loss(leaf, **inputs, reduction="none")
        mean = ce.sigmoid_focal_loss(leaf, **inputs)
        results.append((loss.detach(), grad_of(loss, leaf, upstream), mean.detach()))
    for x, y in zip(results[0][:2], results[1][:2], strict=True):
        assert_same_bits(x, y)
    torch.testing.assert_close(results[0][2], results[1][2])


@pytest.mark.parametrize("weight", [(1,), (3,), (2, 1), (5, 1, 1), (1, 2, 3), ()], ids=str)
def test_broadcast(weight: tuple[int, ...]) -> None:
    input, target = make_inputs((5, 2, 3))
    check(input, target, torch.rand(weight), pos_weight=1 + torch.rand(weight))


def test_many_dimensions_that_merge() -> None:
    """Dense in another order, they are one; and so is the gradient."""
    input = torch.randn(2, 3, 2, 3, 2, 3, 2, 3).permute(*range(7, -1, -1))
    target = torch.rand_like(input)
    x, y = (z.clone().requires_grad_() for z in (input, input.contiguous()))
    assert x.stride() == input.stride()
    ce.sigmoid_focal_loss(x, target).backward()
    ce.sigmoid_focal_loss(y, target.contiguous()).backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_more_dimensions_than_merge() -> None:
    """Seven that the weight keeps apart are refused; as a whole tensor the weight is not."""
    input, target = make_inputs((2,) * 7)
    weight = torch.rand(2, 1, 2, 1, 2, 1, 2)
    with pytest.raises(RuntimeError, match="more than 6 dimensions"):
        ce.sigmoid_focal_loss(input, target, weight)
    check(input, target, weight.expand(input.shape).contiguous())


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, BF16, F16])
def test_target_dtypes(dtype) -> None:
    input, target = make_inputs()
    expected = ce.sigmoid_focal_loss(input, target)
    assert_same_bits(ce.sigmoid_focal_loss(input, target.to(dtype)), expected)


@REDUCTIONS
@pytest.mark.parametrize("dtype", [F32, torch.uint8, torch.int64], ids=str)
def test_ignored_elements(reduction: str, dtype) -> None:
    """They may hold anything."""
    input, target = make_inputs()
    ignored = torch.rand(input.shape) < 0.4
    value = 255 if dtype == torch.uint8 else -1
    target = target.masked_fill(ignored, value).to(dtype)
    input = input.masked_fill(ignored, NAN).requires_grad_()
    loss = ce.sigmoid_focal_loss(input, target, ignore_value=value, reduction=reduction)
    kept = input.detach()[~ignored].requires_grad_()
    expected = ce.sigmoid_focal_loss(kept, target[~ignored], reduction=reduction)
    if reduction == "none":
        assert_same_bits(loss[ignored], torch.zeros(int(ignored.sum())))
        torch.testing.assert_close(loss[~ignored], expected)
    else:
        torch.testing.assert_close(loss, expected)
    grad = grad_of(loss.sum(), input)
    assert_same_bits(grad[ignored], torch.zeros(int(ignored.sum())))
    torch.testing.assert_close(grad[~ignored], grad_of(expected.sum(), kept))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_ignored_as_the_target_can_hold_it(dtype) -> None:
    target = torch.tensor([1, 0, 0.1, 0.1], dtype=dtype)
    for input_dtype in (F64, dtype):
        input = torch.randn(4, dtype=input_dtype)
        loss = ce.sigmoid_focal_loss(input, target, ignore_value=0.1, reduction="none")
        assert (loss == 0).tolist() == [False, False, True, True]


def test_float64_target_makes_it_float64() -> None:
    input, target = make_inputs(soft=True)
    assert ce.sigmoid_focal_loss(input, target.double()).dtype == F64


def test_all_ignored() -> None:
    input = torch.randn(5, requires_grad=True)
    loss = ce.sigmoid_focal_loss(input, torch.full((5,), -1.0), ignore_value=-1)
    assert loss.isnan()
    assert_same_bits(grad_of(loss, input), torch.zeros(5))


def test_threads_do_not_change_the_bits() -> None:
    input, target = make_inputs((300_000,))
    input.requires_grad_()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        loss = ce.sigmoid_focal_loss(input, target)
        results.append((loss.detach(), grad_of(loss, input)))
    for result in results[1:]:
        for x, y in zip(result, results[0], strict=True):
            assert_same_bits(x, y)


# Autograd.


@REDUCTIONS
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_derivatives(reduction: str, gamma: float, soft: bool) -> None:
    input, target = make_inputs((4, 3), F64, soft, spread=1.0)
    weight, pos_weight = torch.rand(3, dtype=F64), torch.rand(4, 1, dtype=F64)
    options = {"gamma": gamma, "alpha": 0.3, "reduction": reduction}

    def loss(input):
        return ce.sigmoid_focal_loss(input, target, weight, pos_weight=pos_weight, **options)

    assert gradcheck(loss, input.requires_grad_())
    assert gradgradcheck(loss, input)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_derivatives_of_target_and_weights(gamma: float) -> None:
    shapes = ((4, 3), (4, 3), (3,), (4, 1))
    tensors = [(0.2 + 0.6 * torch.rand(s, dtype=F64)).requires_grad_() for s in shapes]

    def loss(input, target, weight, pos_weight):
        return ce.sigmoid_focal_loss(input, target, weight, pos_weight=pos_weight, gamma=gamma)

    assert gradcheck(loss, tensors)
    input, target, weight, pos_weight = tensors
    pytorch = F.binary_cross_entropy_with_logits  # has no derivatives but these two
    theirs = pytorch(input, target, weight.detach(), pos_weight=pos_weight.detach())
    ours = loss(input, target, weight.detach(), pos_weight.detach())
    if gamma == 0:
        for x, y in zip(
            torch.autograd.grad(ours, (input, target)),
            torch.autograd.grad(theirs, (input, target)),
            strict=True,
        ):
            torch.testing.assert_close(x, y)


def test_second_backward() -> None:
    input, target = make_inputs()
    input.requires_grad_()
    loss = ce.sigmoid_focal_loss(input, target)
    (first,) = torch.autograd.grad(loss, input, retain_graph=True)
    kept = first.clone()
    first.fill_(NAN)
    (second,) = torch.autograd.grad(loss, input)
    assert_same_bits(second, kept)


def test_function_transforms() -> None:
    input, target = make_inputs((5, 4), F64)

    def loss(x):
        return ce.sigmoid_focal_loss(x, target, alpha=0.25)

    def plain(x):
        return torchvision_loss(x, target, reduction="mean")

    torch.testing.assert_close(torch.func.grad(loss)(input), torch.func.grad(plain)(input))
    tangent = torch.randn_like(input)
    torch.testing.assert_close(
        torch.func.jvp(loss, (input,), (tangent,)), torch.func.jvp(plain, (input,), (tangent,))
    )
    inputs = torch.stack([input, -input])
    torch.testing.assert_close(torch.func.vmap(loss)(inputs), torch.func.vmap(plain)(inputs))


@REDUCTIONS
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(reduction: str, dynamic: bool) -> None:
    torch._dynamo.reset()

    def loss(input, target, pos_weight):
        return ce.sigmoid_focal_loss(
            input * 1, target, pos_weight=pos_weight, alpha=0.25, reduction=reduction
        )

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    input, target = make_inputs((6, 5))
    input.requires_grad_()
    pos_weight = torch.rand(5)
    expected, received = loss(input, target, pos_weight), compiled(input, target, pos_weight)
    assert_same_bits(received, expected)
    upstream = torch.randn_like(expected)
    assert_same_bits(grad_of(received, input, upstream), grad_of(expected, input, upstream))


def test_autocast() -> None:
    input, target = make_inputs(dtype=BF16)
    with torch.autocast(input.device.type, dtype=BF16):
        assert ce.binary_cross_entropy_with_logits(input, target).dtype == F32


# Modules.


def test_modules() -> None:
    input, target = make_inputs()
    weight, pos_weight = torch.rand(53), torch.rand(53)
    module = ce.BCEWithLogitsLoss(weight, pos_weight=pos_weight, reduction="sum")
    assert list(module.state_dict()) == ["weight", "pos_weight"]
    torch.testing.assert_close(
        module(input, target),
        torch.nn.BCEWithLogitsLoss(weight, pos_weight=pos_weight, reduction="sum")(input, target),
    )
    module = ce.SigmoidFocalLoss(alpha=0.25, ignore_value=-1)
    assert_same_bits(
        module(input, target), ce.sigmoid_focal_loss(input, target, alpha=0.25, ignore_value=-1)
    )
    module.gamma = 0.0
    assert_same_bits(
        module(input, target), ce.sigmoid_focal_loss(input, target, alpha=0.25, gamma=0.0)
    )


# Bad input.

X, T = torch.randn(4, 3), torch.rand(4, 3)
BAD = [
    (TypeError, "input must be a Tensor", {"input": None}),
    (TypeError, "target must be a Tensor", {"target": [0.0]}),
    (TypeError, "weight must be a Tensor", {"weight": 1.0}),
    (TypeError, "pos_weight must be a Tensor", {"pos_weight": 1.0}),
    (TypeError, "alpha must be a float", {"alpha": "0.25"}),
    (TypeError, "gamma must be a float", {"gamma": None}),
    (TypeError, "ignore_value must be a float", {"ignore_value": T}),
    (NotImplementedError, "input has dtype torch.int64", {"input": X.long()}),
    (RuntimeError, "target has dtype int16", {"target": T.short()}),
    (ValueError, r"target has shape \[4\].*\[4, 3\]", {"target": T[:, 0]}),
    (ValueError, r"target has shape \[1, 3\]", {"target": T[:1]}),
    (RuntimeError, r"pos_weight has shape \[4\].*\[4, 3\]", {"pos_weight": torch.ones(4)}),
    (RuntimeError, r"weight has shape \[2, 4, 3\]", {"weight": torch.ones(2, 4, 3)}),
    (RuntimeError, "weight has dtype int16", {"weight": X.short()}),
    (RuntimeError, "pos_weight has dtype int16", {"pos_weight": X.short()}),
    (RuntimeError, "target is on meta, but input is on cpu", {"target": T.to("meta")}),
    (RuntimeError, "pos_weight is on meta, but input is on cpu", {"pos_weight": T.to("meta")}),
    (ValueError, "gamma is -1", {"gamma": -1.0}),
    (ValueError, "gamma is inf", {"gamma": INF}),
    (ValueError, r"gamma is 1e\+39", {"gamma": 1e39}),
    (ValueError, "gamma is nan", {"gamma": NAN}),
    (ValueError, "alpha is 1.5", {"alpha": 1.5}),
    (ValueError, "alpha is nan", {"alpha": NAN}),
    (ValueError, "ignore_value is nan", {"ignore_value": NAN}),
    (ValueError, "reduction is 'batchmean'", {"reduction": "batchmean"}),
]


@pytest.mark.parametrize(("error", "message", "changed"), BAD, ids=[row[1] for row in BAD])
def test_bad_input(error: type[Exception], message: str, changed: dict) -> None:
    good = {"input": X, "target": T}
    ce.sigmoid_focal_loss(**good)
    with pytest.raises(error, match=message):
        ce.sigmoid_focal_loss(**{**good, **changed})
    if "input" not in changed and "target" not in changed:  # and where plain PyTorch computes
        good["target"] = T.clone().requires_grad_()
        with pytest.raises(error, match=message):
            ce.sigmoid_focal_loss(**{**good, **changed})


def test_targets_outside_the_probabilities() -> None:
    """With gamma 2 a power like any other, the same on both routes."""
    input = torch.tensor([5.0, -5.0, 3.0, -3.0], requires_grad=True)
    target = torch.tensor([1.3, -0.2, 1.3, -0.2])
    loss = ce.sigmoid_focal_loss(input, target)
    expected = torchvision_loss(input, target, alpha=-1, reduction="mean")
    torch.testing.assert_close(loss, expected)
    (theirs,) = torch.autograd.grad(expected, input)
    for create_graph in (False, True):
        (grad,) = torch.autograd.grad(loss, input, retain_graph=True, create_graph=create_graph)
        torch.testing.assert_close(grad, theirs)
