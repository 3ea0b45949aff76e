"""First and second derivatives against finite differences, in float64."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchce_cuda as ce

pytestmark = pytest.mark.usefixtures("one_thread")
ON_EACH_DEVICE = pytest.mark.usefixtures("on_each_device")

Inputs = tuple[Tensor, Tensor, Tensor | None]


# Kernels differentiate by the logits; by probabilities and weight, a composition does.
KINDS = pytest.mark.parametrize("kind", ["indices", "probabilities", "learned probabilities"])


def make_inputs(kind: str, weighted: bool = False, shape: tuple[int, ...] = (4, 3)) -> Inputs:
    """Logits, target and weight; all with a gradient where the probabilities are learned."""
    class_dim = min(len(shape) - 1, 1)
    num_classes, row_shape = shape[class_dim], shape[:class_dim] + shape[class_dim + 1 :]
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = 0.5 + torch.rand(num_classes, dtype=torch.float64) if weighted else None
    if kind == "indices":
        target = torch.randint(num_classes, row_shape)
        if row_shape:
            target[-1] = -100
        return logits, target, weight
    target = torch.rand(shape, dtype=torch.float64)
    if kind == "learned probabilities":
        for x in (target, weight) if weighted else (target,):
            x.requires_grad_()
    return logits, target, weight


def check_derivatives(inputs: Inputs, **arguments) -> None:
    def loss(*tensors: Tensor | None) -> Tensor:
        return ce.cross_entropy(*tensors, **arguments)

    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)


@KINDS
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.7])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_grid(
    kind: str, weighted: bool, gamma: float, label_smoothing: float, reduction: str
) -> None:
    check_derivatives(
        make_inputs(kind, weighted),
        gamma=gamma,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


@KINDS
@pytest.mark.parametrize("shape", [(4,), (3, 1), (2, 3, 2), (2, 3, 2, 1)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@ON_EACH_DEVICE
def test_shapes(kind: str, shape: tuple[int, ...], reduction: str) -> None:
    inputs = make_inputs(kind, True, shape)
    check_derivatives(inputs, gamma=1.5, label_smoothing=0.1, reduction=reduction)


@KINDS
@pytest.mark.parametrize(
    "arguments",
    [
        {"z_loss": 0.1},
        {"logit_scale": 1.7},
        {"logit_softcap": 1.5},
        {"logit_scale": -0.7, "logit_softcap": 2.0, "z_loss": 0.1},
        {"gamma": 2.0, "label_smoothing": 0.2, "z_loss": 0.1, "logit_softcap": 2.0},
        {"normalizer": 3.0},
        {"label_smoothing": 1.0, "gamma": 0.5},
    ],
    ids=lambda arguments: "+".join(arguments),
)
@ON_EACH_DEVICE
def test_extras(kind: str, arguments: dict) -> None:
    check_derivatives(make_inputs(kind, True), **arguments)


@ON_EACH_DEVICE
def test_normalizer_is_differentiable() -> None:
    logits, target, weight = make_inputs("indices")
    normalizer = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def loss(logits: Tensor, normalizer: Tensor) -> Tensor:
        return ce.cross_entropy(logits, target, gamma=1.5, normalizer=normalizer)

    assert gradcheck(loss, (logits, normalizer))
    assert gradgradcheck(loss, (logits, normalizer))


@pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced"])
@ON_EACH_DEVICE
def test_strided_logits(layout: str) -> None:
    """The gradient goes back through whatever made the strides."""
    base = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    views = {
        "transposed": lambda x: x.T,
        "expanded": lambda x: x[:1].expand(3, 6),
        "sliced": lambda x: x[:, 1:6:2],
    }
    view = views[layout]
    target = torch.zeros(len(view(base)), dtype=torch.int64)

    def loss(base: Tensor) -> Tensor:
        return ce.cross_entropy(view(base), target, gamma=1.5, reduction="none")

    assert gradcheck(loss, base)
    assert gradgradcheck(loss, base)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@ON_EACH_DEVICE
def test_second_derivative_at_hard_logits(gamma: float) -> None:
    """Finite, where finite differences cannot follow: p at 0 and at 1, masked classes."""
    rows = [[800.0, 0.0, -800.0], [0.0, 40.0, 0.0], [0.0, -float("inf"), 1.0], [1e4, 1e4, 1e4]]
    logits = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    for target in ([0, 1, 0, 2], [2, 0, 2, 0]):
        loss = ce.cross_entropy(logits, torch.tensor(target), gamma=gamma)
        (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), logits)
        assert grad.isfinite().all()
        assert second.isfinite().all()
