"""What only a GPU can show: graphs, streams, no synchronisation, tensors beyond 2^31 elements."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_same_bits

import torchce_cuda as ce

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
SHAPES = [(64, 10), (64, 1000), (64, 50257), (4, 128256), (2, 21, 64, 64)]


def make_inputs(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    return logits, torch.randint(shape[1], (shape[0], *shape[2:]), device="cuda")


def step(logits: torch.Tensor, target: torch.Tensor, **options) -> tuple[torch.Tensor, ...]:
    leaf = logits.detach().requires_grad_()
    loss = ce.cross_entropy(leaf * 1, target, **options)
    return loss.detach(), *torch.autograd.grad(loss, leaf)


@pytest.fixture
def nobody_waits() -> Iterator[None]:
    """Whatever waits for the device raises."""
    ce.check_targets(False)
    step(*make_inputs((2, 3)))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"inplace": True}, {"gamma": 2.0}], ids=str)
def test_graph_capture(shape: tuple[int, ...], options: dict) -> None:
    logits, target = make_inputs(shape)
    expected = step(logits, target, **options)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(logits, target, **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(logits, target, **options)
    for _ in range(2):
        graph.replay()
        for x, y in zip(captured, expected, strict=True):
            assert_same_bits(x, y)
    logits.copy_(torch.randn(shape))
    graph.replay()
    for x, y in zip(captured, step(logits, target, **options), strict=True):
        assert_same_bits(x, y)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_nothing_waits_for_the_device(
    shape: tuple[int, ...], inplace: bool, nobody_waits: None
) -> None:
    logits, target = make_inputs(shape)
    weight = torch.rand(shape[1], device="cuda")
    normalizer = torch.full((), 7.0, device="cuda", dtype=torch.float64)
    for options in ({}, {"weight": weight}, {"reduction": "none"}, {"normalizer": normalizer}):
        leaf = logits.detach().requires_grad_()
        ce.cross_entropy(leaf * 1, target, inplace=inplace, **options).sum().backward()


def test_another_stream() -> None:
    logits, target = make_inputs((64, 50257))
    expected = step(logits, target)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = step(logits, target)
    torch.cuda.current_stream().wait_stream(stream)
    for x, y in zip(results, expected, strict=True):
        assert_same_bits(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(17000, 128256), (2**28 + 5, 9), (2, 33, 2**25 + 3)], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_more_elements_than_32_bits_count(shape: tuple[int, ...], inplace: bool) -> None:
    elements = torch.Size(shape).numel()
    if torch.cuda.mem_get_info()[0] < 5 * 2 * elements:
        pytest.skip(f"needs {10 * elements / 2**30:.0f} GiB")
    logits, target = make_inputs(shape)
    loss, grad = step(logits, target, inplace=inplace, reduction="sum")
    last = logits[-1:, ..., -1000:] if len(shape) > 2 else logits[-1000:]
    last_target = target[-1:, ..., -1000:] if len(shape) > 2 else target[-1000:]
    exact = last.double().requires_grad_()
    F.cross_entropy(exact, last_target, reduction="sum").backward()
    last_grad = grad[-1:, ..., -1000:] if len(shape) > 2 else grad[-1000:]
    assert (last_grad - exact.grad).abs().max() <= 2**-8
    assert (last_grad - exact.grad).abs().mean() <= 2**-9 * exact.grad.abs().mean()
    assert loss.isfinite()


def peak_memory(function) -> tuple[int, object]:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = function()
    return torch.cuda.max_memory_allocated() - before, result


def test_memory() -> None:
    """Forward O(rows); backward the gradient alone; in place nothing."""
    logits, target = make_inputs((1024, 32000))
    few = 64 * 1024
    leaf = logits.requires_grad_()
    peak, loss = peak_memory(lambda: ce.cross_entropy(leaf, target))
    assert peak <= few
    peak, _ = peak_memory(lambda: torch.autograd.grad(loss, leaf))
    assert peak <= logits.numel() * logits.element_size() + few
    consumed = leaf * 1
    peak, _ = peak_memory(lambda: ce.cross_entropy(consumed, target, inplace=True))
    assert peak <= few
