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


def step(
    logits: torch.Tensor, target: torch.Tensor, factor: float = 1.0, **options
) -> tuple[torch.Tensor, ...]:
    leaf = logits.detach().requires_grad_()
    loss = ce.cross_entropy(leaf * 1, target, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum() * factor, leaf)


def capture(function, *arguments, **options) -> tuple[torch.cuda.CUDAGraph, tuple]:
    """A graph of one call, and the tensors that a replay writes to."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(*arguments, **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = function(*arguments, **options)
    return graph, captured


CAPTURED = [
    {},
    {"inplace": True},
    {"inplace": True, "factor": 3.0},  # the gradient is made, then scaled
    {"gamma": 2.0},
    {"gamma": 2.0, "label_smoothing": 0.1, "reduction": "none"},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", CAPTURED, ids=str)
def test_graph_capture(shape: tuple[int, ...], options: dict) -> None:
    logits, target = make_inputs(shape)
    expected = step(logits, target, **options)
    graph, captured = capture(step, logits, target, **options)
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
    graph, captured = capture(linear_step, hidden, head, target, **options)
    graph.replay()
    for x, y in zip(captured, expected, strict=True):
        assert_same_bits(x, y)


@pytest.mark.parametrize("inplace", [False, True])
def test_what_a_replay_finds_is_told_outside(inplace: bool) -> None:
    logits, target = make_inputs((64, 50257))
    graph, (loss, grad) = capture(step, logits, target, inplace=inplace, reduction="none")
    target[7] = 50257
    graph.replay()
    with pytest.raises(IndexError, match="Target 50257 is out of bounds: row 7 of the target"):
        ce.check_targets()
    bad = torch.arange(64, device="cuda") == 7
    assert torch.equal(loss.isnan(), bad)
    assert torch.equal(grad.isnan(), bad.unsqueeze(1).expand_as(grad))
    target[7] = 0
    graph.replay()
    ce.check_targets()
    for x, y in zip((loss, grad), step(logits, target, reduction="none"), strict=True):
        assert_same_bits(x, y)


def test_a_call_under_capture_leaves_what_was_found() -> None:
    ce.check_targets(False)
    logits, target = make_inputs((64, 1000))
    bad = target.clone()
    bad[7] = 1000
    ce.cross_entropy(logits, target)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    ce.cross_entropy(logits, bad)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        loss = ce.cross_entropy(logits, target)
    with pytest.raises(IndexError, match="Target 1000 is out of bounds: row 7 of the target"):
        ce.check_targets()
    graph.replay()
    assert_same_bits(loss, ce.cross_entropy(logits, target))


def test_asking_disturbs_no_capture_on_another_stream() -> None:
    logits, target = make_inputs((64, 1000))
    expected = ce.cross_entropy(logits, target)
    asking = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = ce.cross_entropy(logits, target)
        with torch.cuda.stream(asking):
            ce.check_targets()
    graph.replay()
    assert_same_bits(loss, expected)


FORKED = """
import os, torch, torchce_cuda as ce
ce.cross_entropy(torch.randn(4, 10, device="cuda"), torch.zeros(4, dtype=int, device="cuda"))
child = os.fork()
if child == 0:
    ce.check_targets()  # of a device that the child cannot use
    print("asked", flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_a_forked_child_may_ask() -> None:
    output = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120
    )
    assert output.stdout == "asked\n", output.stderr


THREADS = """
import threading, torch, torch.nn.functional as F, torchce_cuda as ce

def work(classes):
    with torch.cuda.stream(torch.cuda.Stream()):
        logits = torch.randn(4, classes, device="cuda", requires_grad=True)
        target = torch.zeros(4, dtype=int, device="cuda")
        for _ in range(300):
            ce.cross_entropy(logits, target).backward()
    done.append(classes)

done = []
threads = [threading.Thread(target=work, args=(n,)) for n in (13_001, 14_009, 15_013, 16_001)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(done))
"""


def test_threads_need_different_shared_memory() -> None:
    """Of the same kernel, whose limit belongs to all of them."""
    output = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=120
    )
    assert output.stdout == "[13001, 14009, 15013, 16001]\n", output.stderr


# Without a call of ours before, and so with everything yet to be loaded and allocated; at the end,
# what needs more shared memory than a kernel has without asking, and clusters.
FIRST_CALL = """
import torch, torchce_cuda as ce
classes, options = {classes}, {options}
logits = torch.randn(64, classes, device="cuda")
target = torch.randint(classes, (64,), device="cuda")

def step(loss_of, **options):  # a leaf of its own: a graph's belongs to the stream that made it
    leaf = logits.detach().requires_grad_()
    loss = loss_of(leaf * 1, target, **options)
    return loss.detach(), *torch.autograd.grad(loss, leaf)

expected, expected_grad = step(torch.nn.functional.cross_entropy)
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    loss, grad = step(ce.cross_entropy, **options)
graph.replay()
torch.testing.assert_close(loss, expected)
torch.testing.assert_close(grad, expected_grad)
print("captured")
"""


@pytest.mark.parametrize(
    ("classes", "options"), [(10, {}), (50257, {}), (128256, {"inplace": True})], ids=str
)
def test_the_first_call_may_be_captured(classes: int, options: dict) -> None:
    program = FIRST_CALL.format(classes=classes, options=options)
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
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


def needs_memory(needed: float) -> None:
    torch.cuda.empty_cache()  # what an earlier test has left is free for this one
    free = torch.cuda.mem_get_info()[0]
    if free < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free")


# Tests that take much of the memory follow each other, in whichever process of pytest-xdist.
LARGE = pytest.mark.xdist_group("large")


@LARGE
@pytest.mark.slow
@pytest.mark.parametrize("shape", [(17000, 128256), (2**28 + 5, 9), (2, 33, 2**25 + 3)], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_more_elements_than_32_bits_count(shape: tuple[int, ...], inplace: bool) -> None:
    elements = torch.Size(shape).numel()
    # of 2 bytes: logits, their copy and two gradients; then target, state and losses of the rows,
    # which are a third of that where they are shortest, and float64 for the comparison
    needs_memory(7 * 2 * elements)
    logits, target = make_inputs(shape)
    factor = -2.0  # exact, and so that a gradient made before it arrives has to be scaled
    loss, grad = step(logits, target, factor, inplace=inplace, reduction="sum")
    exact_loss = 0.0
    rows = max(1, 2**26 // shape[1])  # 0.5 GiB of float64
    for part in range(0, shape[-1] if len(shape) > 2 else shape[0], rows):
        at = (..., slice(part, part + rows)) if len(shape) > 2 else slice(part, part + rows)
        exact = logits[at].double().requires_grad_()
        part_loss = F.cross_entropy(exact, target[at], reduction="sum")
        (factor * part_loss).backward()
        exact_loss += part_loss.item()
        error = (grad[at] - exact.grad).abs()
        assert (error <= 2**-7 * exact.grad.abs() + 1e-30).all(), part
    assert abs(loss.item() - exact_loss) <= 1e-5 * exact_loss


@LARGE
@pytest.mark.slow
def test_more_sigmoids_than_32_bits_count() -> None:
    elements = 2**31 + 2**20 + 1
    needs_memory(7 * 2 * elements)
    leaf = torch.randn(elements, device="cuda", dtype=torch.bfloat16).requires_grad_()
    target = torch.rand(elements, device="cuda", dtype=torch.bfloat16)
    loss = ce.sigmoid_focal_loss(leaf, target, gamma=0.0, reduction="sum")
    (grad,) = torch.autograd.grad(loss, leaf)
    exact_loss = 0.0
    parts = (x.detach().split(2**26) for x in (leaf, target, grad))
    for x, y, received in zip(*parts, strict=True):
        x, y = x.double(), y.double()
        exact_loss += F.binary_cross_entropy_with_logits(x, y, reduction="sum").item()
        assert ((received - (x.sigmoid() - y)).abs() <= 2**-8).all()
    assert abs(loss.item() - exact_loss) <= 1e-5 * exact_loss


def peak_memory(function) -> tuple[int, object]:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # a block of an earlier test would be handed out, and counted, whole
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
