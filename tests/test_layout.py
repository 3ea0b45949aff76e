"""Where the tensors lie must not matter: strides, offsets, many dimensions, nothing at all.

Whether the numbers are right, `test_forward.py` and `test_backward.py` decide; here a layout is
held against the contiguous copy of the same tensor. The order of sums over a row may differ between
the two, so they agree within some roundings, not in each bit.
"""

import pytest
import torch
from cases import LAYOUTS, OPTIONS, Case, Option, make_problem, problem_id
from torch import Tensor

import torchce_cuda as ce

SHAPES = {
    "transposed": ((6, 50), (2, 50, 6)),
    "offset_one": ((7, 67), (2, 5, 3, 4)),
    "sliced": ((7, 67), (2, 5, 3, 4)),
    "every_second": ((7, 67), (2, 21, 3, 4)),
    "expanded": ((7, 67), (2, 21, 3, 4)),
    "channels_last": ((2, 21, 3, 4), (3, 67, 5)),
}
EVERYTHING = [OPTIONS[name] for name in ("mean", "none", "everything")]


def loss_and_gradients(
    logits: Tensor, target: Tensor, weight: Tensor | None, arguments: dict, grad_loss: Tensor
) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    loss = ce.cross_entropy(logits, target, weight, **arguments)
    (grad,) = torch.autograd.grad(loss, logits, grad_loss.to(loss.dtype))
    return loss.detach(), grad


@pytest.mark.parametrize(
    ("layout", "shape"), [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=problem_id)
@pytest.mark.parametrize("option", EVERYTHING, ids=problem_id)
@pytest.mark.parametrize("target", [torch.int64, "probabilities"], ids=["indices", "soft"])
def test_as_the_contiguous_copy(
    layout: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    option: Option,
    target: torch.dtype | str,
    device: torch.device,
) -> None:
    case = Case("layout", shape, "", layout=layout, target=target)
    problem = make_problem(case, dtype, option, device)
    rest = (problem.weight, problem.arguments, problem.grad_loss)
    logits = problem.input
    assert not logits.is_contiguous() or layout == "offset_one"
    loss, grad = loss_and_gradients(logits, problem.target, *rest)
    expected_loss, expected_grad = loss_and_gradients(
        logits.clone(memory_format=torch.contiguous_format), problem.target, *rest
    )
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-6 if dtype.itemsize < 8 else 1e-15}
    torch.testing.assert_close(loss, expected_loss, rtol=2e-6, atol=0)
    torch.testing.assert_close(grad, expected_grad, **tolerance)


@pytest.mark.parametrize("layout", ["offset_one", "every_second", "expanded", "channels_last"])
def test_strided_targets_and_weights(layout: str, device: torch.device) -> None:
    """The logits are contiguous, all other tensors are not."""
    logits = torch.randn(2, 6, 4, 4, device=device)
    soft = torch.rand(2, 6, 4, 4, device=device)
    indices = torch.randint(6, (2, 1, 4, 4), device=device)
    weight = torch.rand(12, device=device)[::2]
    grad_loss = torch.randn(2, 4, 4, device=device)
    for plain in (indices, soft):
        target = LAYOUTS[layout](plain)
        plain, target = (x.squeeze(1) if x.shape[1] == 1 else x for x in (target.clone(), target))
        results = [
            loss_and_gradients(logits, *given, {"reduction": "none"}, grad_loss)
            for given in ((target, weight), (plain.contiguous(), weight.contiguous()))
        ]
        for strided, contiguous in zip(*results, strict=True):
            torch.testing.assert_close(strided, contiguous, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("layout", ["scalar", "expanded", "strided", "transposed"])
def test_upstream_gradient_layouts(layout: str, device: torch.device) -> None:
    logits, target = torch.randn(4, 5, 6, device=device), torch.randint(5, (4, 6), device=device)
    grad_loss = {
        "scalar": lambda: torch.tensor(-2.5, device=device),
        "expanded": lambda: torch.tensor(-2.5, device=device).expand(4, 6),
        "strided": lambda: torch.randn(8, 12, device=device)[::2, ::2],
        "transposed": lambda: torch.randn(6, 4, device=device).T,
    }[layout]()
    arguments = {"reduction": "sum" if layout == "scalar" else "none"}
    _, grad = loss_and_gradients(logits, target, None, arguments, grad_loss)
    _, expected = loss_and_gradients(logits, target, None, arguments, grad_loss.contiguous())
    assert torch.equal(grad, expected)
    if layout != "scalar":
        _, unit = loss_and_gradients(logits, target, None, arguments, torch.ones_like(grad_loss))
        torch.testing.assert_close(grad, unit * grad_loss.unsqueeze(1))


@pytest.mark.parametrize("reverse", [False, True])
def test_more_dimensions_than_can_be_merged(reverse: bool, device: torch.device) -> None:
    logits = torch.randn(2, 3, 2, 3, 2, 2, 2, 2, 3, device=device)
    order = range(logits.dim() - 1, -1, -1) if reverse else (0, 1, 8, 3, 6, 5, 4, 7, 2)
    logits = logits.permute(*order)
    num_classes = logits.shape[1]
    target = torch.randint(num_classes, (logits.shape[0], *logits.shape[2:]), device=device)
    rows = logits.movedim(1, -1).reshape(-1, num_classes)
    loss, grad = loss_and_gradients(logits, target, None, {}, torch.tensor(1.0))
    expected_loss, expected_grad = loss_and_gradients(
        rows, target.reshape(-1), None, {}, torch.tensor(1.0)
    )
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(grad.movedim(1, -1).reshape(-1, num_classes), expected_grad)


def test_more_dimensions_than_the_expanded_have(device: torch.device) -> None:
    """What repeats merges; its gradient repeats nothing, and has a dimension too many."""
    shape = (3, 3, 2, 3, 1, 3, 2, 2, 3)
    logits = torch.randn(500, device=device).as_strided(shape, (2, 0, 6, 72, 72, 24, 1, 12, 0))
    target = torch.randint(3, (3, *shape[2:]), device=device)
    one = torch.tensor(1.0, device=device)
    loss, grad = loss_and_gradients(logits, target, None, {}, one)
    flat, flat_target = logits.flatten(2), target.flatten(1)
    expected_loss, expected_grad = loss_and_gradients(flat, flat_target, None, {}, one)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(grad.flatten(2), expected_grad)
    torch.library.opcheck(
        torch.ops.torchce.cross_entropy_forward_backward,
        (logits, target),
        test_utils="test_faketensor",
    )


@pytest.mark.parametrize(
    "shape", [(0, 3), (2, 3, 0), (0, 3, 4), (2, 3, 0, 5), (2, 3, 5, 0)], ids=str
)
@pytest.mark.parametrize("target", [torch.int64, "probabilities"], ids=["indices", "soft"])
def test_no_rows(shape: tuple[int, ...], target: torch.dtype | str, device: torch.device) -> None:
    case = Case("empty", shape, "", target=target)
    for name, expected in ("none", 0.0), ("mean", float("nan")), ("sum", 0.0):
        problem = make_problem(case, torch.float32, OPTIONS[name], device)
        rest = (problem.weight, problem.arguments, problem.grad_loss)
        loss, grad = loss_and_gradients(problem.input, problem.target, *rest)
        assert grad.shape == shape
        assert loss.shape == (case.row_shape if name == "none" else ())
        torch.testing.assert_close(loss, torch.full_like(loss, expected), equal_nan=True)


def test_no_classes(device: torch.device) -> None:
    """Legal while every row is ignored."""
    logits = torch.empty(5, 0, device=device)
    ignored = torch.full((5,), -100, device=device)
    for reduction, expected in ("none", 0.0), ("mean", float("nan")), ("sum", 0.0):
        grad_loss = torch.ones(5 if reduction == "none" else (), device=device)
        loss, grad = loss_and_gradients(logits, ignored, None, {"reduction": reduction}, grad_loss)
        assert grad.shape == (5, 0)
        torch.testing.assert_close(loss, torch.full_like(loss, expected), equal_nan=True)
    with pytest.raises(IndexError):
        ce.cross_entropy(logits, torch.zeros_like(ignored))


@pytest.mark.parametrize("options", [{}, {"gamma": 2.0}, {"z_loss": 1e-3}], ids=str)
@pytest.mark.parametrize("shape", [(5, 0), (2, 0, 3)], ids=str)
def test_no_classes_of_probabilities(
    shape: tuple[int, ...], options: dict, device: torch.device
) -> None:
    """Their sum is 0, whatever memory held before."""
    logits = torch.empty(shape, device=device, requires_grad=True)
    ce.cross_entropy(torch.randn(300, 7, device=device), torch.rand(300, 7, device=device))
    for reduction in ("none", "sum"):
        loss = ce.cross_entropy(logits, torch.empty_like(logits), reduction=reduction, **options)
        assert torch.equal(loss, torch.zeros_like(loss))
        loss.sum().backward()


@pytest.mark.parametrize("shape", [(6, 50), (2, 21, 3, 4), (2, 21, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_has_its_own_memory(
    shape: tuple[int, ...], layout: str, device: torch.device
) -> None:
    """Of expanded logits too, each element of the gradient can be written alone."""
    logits = LAYOUTS[layout](torch.randn(shape, device=device))
    target = torch.zeros((shape[0], *shape[2:]), dtype=torch.int64, device=device)
    _, grad = loss_and_gradients(logits, target, None, {}, torch.tensor(1.0))
    assert grad.untyped_storage().data_ptr() != logits.untyped_storage().data_ptr()
    positions = torch.arange(grad.numel(), device=device).view(shape)
    grad.copy_(positions)
    assert torch.equal(grad.long(), positions)
