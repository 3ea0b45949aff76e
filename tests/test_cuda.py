"""What only a GPU can show: graphs, streams, no synchronisation, tensors beyond 2^31 elements."""

import subprocess
import sys

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


def linear_step(hidden, head, target, **options) -> tuple[torch.Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (hidden, head)]
    loss = ce.linear_cross_entropy(*leaves, target, chunk_rows=100, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"reduction": "none", "gamma": 2.0}], ids=str)
def test_linear_graph_capture(dtype: torch.dtype, options: dict) -> None:
    """Which also shows that nothing waits for the device."""
    hidden = torch.randn(250, 64, device="cuda", dtype=dtype)
    head = torch.randn(1003, 64, device="cuda", dtype=dtype) / 8
    target = torch.randint(1003, (250,), device="cuda")
    target[::7] = -100
    expected = linear_step(hidden, head, target, **options)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        linear_step(hidden, head, target, **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = linear_step(hidden, head, target, **options)
    graph.replay()
    for x, y in zip(captured, expected, strict=True):
        assert_same_bits(x, y)


FIRST_CALL = """
import torch, torchce_cuda as ce
logits = torch.randn(64, 50257, device="cuda")
target = torch.randint(50257, (64,), device="cuda")
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    loss = ce.cross_entropy(logits, target)
graph.replay()
torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, target))
print("captured")
"""


def test_the_first_call_may_be_captured() -> None:
    output = subprocess.run(
        [sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, timeout=120
    )
    assert output.stdout == "captured\n", output.stderr


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_nothing_waits_for_the_device(shape: tuple[int, ...], inplace: bool) -> None:
    ce.check_targets(False)
    logits, target = make_inputs(shape)
    weight = torch.rand(shape[1], device="cuda")
    normalizer = torch.full((), 7.0, device="cuda", dtype=torch.float64)
    several = ({}, {"weight": weight}, {"reduction": "none"}, {"normalizer": normalizer})

    def run() -> None:
        for options in several:
            leaf = logits.detach().requires_grad_()
            ce.cross_entropy(leaf * 1, target, inplace=inplace, **options).sum().backward()

    run()  # loads kernels, and fills the allocator's pools
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(3_000_000_000)  # clock cycles: more than a second
    busy.record()
    run()
    assert not busy.query()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device() -> None:
    logits, target = make_inputs((64, 50257))
    expected = step(logits, target)
    for x, y in zip(step(logits.to("cuda:1"), target.to("cuda:1")), expected, strict=True):
        assert_same_bits(x.to("cuda:0"), y)
    assert torch.cuda.current_device() == 0


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
    exact_loss = 0.0
    rows = max(1, 2**26 // shape[1])  # 0.5 GiB of float64
    for part in range(0, shape[-1] if len(shape) > 2 else shape[0], rows):
        at = (..., slice(part, part + rows)) if len(shape) > 2 else slice(part, part + rows)
        exact = logits[at].double().requires_grad_()
        part_loss = F.cross_entropy(exact, target[at], reduction="sum")
        part_loss.backward()
        exact_loss += part_loss.item()
        error = (grad[at] - exact.grad).abs()
        assert (error <= 2**-7 * exact.grad.abs() + 1e-30).all(), part
    assert abs(loss.item() - exact_loss) <= 1e-5 * exact_loss


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
