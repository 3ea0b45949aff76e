"""`linear_cross_entropy`: the numbers, the autograd contract, and what it costs in GEMMs."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_same_bits
from cases import BF16, F16, F32, F64, OPTIONS
from linear_cases import (
    FEATURES,
    LinearProblem,
    assert_as_accurate_as_torch,
    by_reference,
    evaluate,
    make_linear_problem,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchce_cuda as ce
from torchce_cuda import chunks

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def ours(problem: LinearProblem, **more) -> dict[str, Tensor]:
    return evaluate(ce.linear_cross_entropy, problem, **more)


def leaves(rows=6, features=4, classes=9, dtype=F64) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((rows, features), (classes, features), (classes,))
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def grads_of(loss: Tensor, *inputs: Tensor, **arguments) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs, **arguments)


# Numbers.


@DTYPES
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("chunk_rows", [None, 16])
def test_accuracy(
    dtype, option: str, probabilities: bool, chunk_rows: int | None, device: torch.device
) -> None:
    problem = make_linear_problem(option, dtype, probabilities, device=device)
    assert_as_accurate_as_torch(ours(problem, chunk_rows=chunk_rows), problem)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("multiplies", [True, False], ids=["native", "emulated"])
@pytest.mark.parametrize("option", ["mean", "none", "everything"])
def test_accuracy_of_either_way_to_multiply(dtype, multiplies, option, monkeypatch) -> None:
    """Whatever this CPU can do; and with many slices of the head."""
    monkeypatch.setattr(chunks, "_cpu_multiplies", lambda dtype: multiplies)
    for name in ("_CPU_SLICE_BYTES", "_CUDA_SLICE_BYTES"):
        monkeypatch.setattr(chunks, name, 4 * FEATURES * 50)
    problem = make_linear_problem(option, dtype)
    assert_as_accurate_as_torch(ours(problem, chunk_rows=16), problem)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_accumulating_in_the_dtype_of_the_head(dtype) -> None:
    problem = make_linear_problem("mean", dtype)
    result = ours(problem, chunk_rows=7, accumulate_dtype=dtype)
    exact = evaluate(by_reference, problem.to(F64))
    for name, value in result.items():
        error = (value.double() - exact[name]).norm() / exact[name].norm()
        assert error < 4 * torch.finfo(dtype).eps, name


def forget_last_chunk(problem: LinearProblem, good: dict) -> dict:
    grad = good["grad_head"].clone()
    last = replace(
        problem, hidden=problem.hidden[-9:], target=problem.target[-9:], weight=problem.weight
    )
    counted = (problem.target >= 0).sum() / (last.target >= 0).sum()
    return good | {"grad_head": grad - (ours(last)["grad_head"] / counted).to(grad.dtype)}


def mean_of_means(problem: LinearProblem, good: dict) -> dict:
    halves = [
        ours(replace(problem, hidden=problem.hidden[rows], target=problem.target[rows]))
        for rows in (slice(0, 16), slice(16, None))
    ]
    mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in ("loss", "grad_head")}
    return good | mean


def zero_other_classes(problem: LinearProblem, good: dict) -> dict:
    grad = torch.zeros_like(good["grad_head"])
    classes = problem.target[problem.target >= 0]
    grad[classes] = good["grad_head"][classes]
    return good | {"grad_head": grad}


MISTAKES = {
    "the last chunk forgotten": forget_last_chunk,
    "a mean of the chunks' means": mean_of_means,
    "classes that are nobody's target": zero_other_classes,
    "upstream gradient forgotten": lambda problem, good: (
        good | {"grad_hidden": good["grad_hidden"] / problem.grad_loss.to(good["loss"].dtype)}
    ),
    "upstream gradient twice": lambda problem, good: (
        good | {"grad_bias": good["grad_bias"] * problem.grad_loss.to(good["loss"].dtype)}
    ),
    "a bias without its gradient": lambda problem, good: (
        good | {"grad_bias": torch.zeros_like(good["grad_bias"])}
    ),
    "rows shifted by one": lambda problem, good: (
        good | {"grad_hidden": good["grad_hidden"].roll(1, 0)}
    ),
    "a loss in the dtype of the input": lambda problem, good: (
        good | {"loss": good["loss"].bfloat16()}
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_planted_mistake_is_found(mistake: str, dtype) -> None:
    problem = make_linear_problem("mean", dtype)
    good = ours(problem)
    assert_as_accurate_as_torch(good, problem)
    with pytest.raises(AssertionError):
        assert_as_accurate_as_torch(MISTAKES[mistake](problem, good), problem)


@REDUCTIONS
@pytest.mark.parametrize("rows", [1, 7, 40, 41])
@pytest.mark.parametrize("chunk_rows", [1, 7, 41, 1000])
def test_chunk_edges(reduction: str, rows: int, chunk_rows: int) -> None:
    problem = make_linear_problem("focal_smoothing", F64, rows=rows)
    if rows == 1:
        problem.target[0] = 3
    upstream = torch.randn(rows if reduction == "none" else (), dtype=F64)
    problem = replace(problem, grad_loss=upstream)
    expected = evaluate(by_reference, problem, reduction=reduction)
    received = ours(problem, reduction=reduction, chunk_rows=chunk_rows)
    for name, value in received.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-11, atol=1e-13, msg=name)


@REDUCTIONS
@pytest.mark.parametrize("ignored", [False, True], ids=["no rows", "all ignored"])
def test_nothing_counts(reduction: str, ignored: bool) -> None:
    """The mean is NaN, as PyTorch's; the gradients are exactly 0, as those of F.cross_entropy."""
    hidden, head, bias = leaves(rows=5 if ignored else 0)
    target = torch.full((len(hidden),), -100)
    loss = ce.linear_cross_entropy(
        hidden, head, target, linear_bias=bias, reduction=reduction, chunk_rows=2
    )
    expected = F.cross_entropy(F.linear(hidden, head, bias), target, reduction=reduction)
    torch.testing.assert_close(loss, expected, equal_nan=True)
    inputs = (hidden, head, bias)
    for grad, leaf in zip(grads_of(loss.sum(), *inputs), inputs, strict=True):
        assert_same_bits(grad, torch.zeros_like(leaf))


# Shapes and layouts.


@REDUCTIONS
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("batch", [(), (6,), (2, 3), (2, 1, 3), (0, 4)], ids=str)
def test_any_batch_shape(reduction: str, probabilities: bool, batch: tuple[int, ...]) -> None:
    hidden = torch.randn(*batch, 4, dtype=F64, requires_grad=True)
    head = torch.randn(9, 4, dtype=F64, requires_grad=True)
    target = torch.randint(9, batch)
    if probabilities:
        target = torch.rand(*batch, 9, dtype=F64)
    loss = ce.linear_cross_entropy(hidden, head, target, reduction=reduction, chunk_rows=4)
    flat = target.reshape(-1, 9) if probabilities else target.reshape(-1)
    logits = F.linear(hidden, head).reshape(-1, 9)
    expected = F.cross_entropy(logits, flat, reduction=reduction)
    assert loss.shape == (batch if reduction == "none" else ())
    torch.testing.assert_close(loss, expected.reshape(loss.shape), equal_nan=True)
    for x, y in zip(
        grads_of(loss.sum(), hidden, head), grads_of(expected.sum(), hidden, head), strict=True
    ):
        torch.testing.assert_close(x, y)


@REDUCTIONS
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
def test_head_of_many_positions(reduction: str, probabilities: bool) -> None:
    """(C, d1, d2, D): logits of shape (N, C, d1, d2), as in F.linear_cross_entropy."""
    hidden = torch.randn(7, 4, dtype=F64, requires_grad=True)
    head = torch.randn(9, 2, 3, 4, dtype=F64, requires_grad=True)
    bias = torch.randn(9, 2, 3, dtype=F64, requires_grad=True)
    target = torch.rand(7, 9, 2, 3, dtype=F64)
    if not probabilities:
        target = target.argmax(1)
        target[2, 1, 1] = -100
    loss = ce.linear_cross_entropy(
        hidden, head, target, linear_bias=bias, reduction=reduction, chunk_rows=3
    )
    logits = torch.einsum("nd,cijd->ncij", hidden, head) + bias
    expected = F.cross_entropy(logits, target, reduction=reduction)
    torch.testing.assert_close(loss, expected)
    inputs = (hidden, head, bias)
    upstream = torch.randn_like(loss)
    for x, y in zip(
        grads_of(loss, *inputs, grad_outputs=upstream),
        grads_of(expected, *inputs, grad_outputs=upstream),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


@DTYPES
@pytest.mark.parametrize("name", ["hidden", "head", "bias", "target"])
def test_strides(dtype, name: str) -> None:
    problem = make_linear_problem("none", dtype, probabilities=name == "target")
    dense = getattr(problem, name)
    strided = torch.stack([dense, torch.full_like(dense, 7)], -1)[..., 0]
    assert strided.dim() < 2 or not strided.is_contiguous()
    expected, tolerance = ours(problem), 4 * torch.finfo(dtype).eps
    for layout in (strided, dense.mT.contiguous().mT if dense.dim() == 2 else dense[:]):
        for key, value in ours(replace(problem, **{name: layout})).items():
            torch.testing.assert_close(value, expected[key], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_target_dtypes(dtype) -> None:
    hidden, head, _ = leaves()
    target = torch.tensor([0, 8, 255, 3, 255, 1])
    given = target if dtype == torch.int64 else target.to(dtype)
    expected = F.cross_entropy(F.linear(hidden, head), target, ignore_index=255)
    received = ce.linear_cross_entropy(hidden, head, given, ignore_index=255, chunk_rows=2)
    torch.testing.assert_close(received, expected)


def test_float64_probabilities_make_it_float64() -> None:
    hidden, head, bias = leaves(dtype=F32)
    target = torch.rand(6, 9, dtype=F64)
    loss = ce.linear_cross_entropy(hidden, head, target, linear_bias=bias)
    assert loss.dtype == F64
    assert all(grad.dtype == F32 for grad in grads_of(loss, hidden, head, bias))


def test_inputs_are_left_alone() -> None:
    problem = make_linear_problem("mean", F32)
    inputs = (problem.hidden, problem.head, problem.bias, problem.target)
    kept = [x.clone() for x in inputs]
    ours(problem, chunk_rows=8)
    for x, y in zip(kept, inputs, strict=True):
        assert_same_bits(x, y)


@pytest.mark.parametrize("option", ["mean", "none"])
def test_same_bits_every_time(option: str) -> None:
    problem = make_linear_problem(option, F32)
    first, second = ours(problem, chunk_rows=16), ours(problem, chunk_rows=16)
    for name in first:
        assert_same_bits(first[name], second[name])


# What is computed, and how often.


@pytest.fixture
def products(monkeypatch) -> list[tuple[str, int]]:
    """(which, rows) of each GEMM over a chunk."""
    made = []

    def count(cls, name: str, which: str) -> None:
        method = getattr(cls, name)

        def counting(self, first, *rest, **keywords):
            made.append((which, len(first)))
            return method(self, first, *rest, **keywords)

        monkeypatch.setattr(cls, name, counting)

    count(chunks._Projection, "logits", "logits")
    count(chunks._Projection, "grad_hidden", "hidden")
    count(chunks._WeightGradient, "add", "head")
    return made


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [
        ((), ["logits", "hidden", "head"]),
        (("hidden",), ["logits", "head"]),
        (("head",), ["logits", "hidden"]),
        (("hidden", "head", "bias"), ["logits"]),
    ],
    ids=str,
)
def test_only_what_is_needed(products, frozen: tuple[str, ...], expected: list[str]) -> None:
    names = ("hidden", "head", "bias")
    inputs = [x.requires_grad_(n not in frozen) for n, x in zip(names, leaves(), strict=True)]
    hidden, head, bias = inputs
    target = torch.randint(9, (6,))
    loss = ce.linear_cross_entropy(hidden, head, target, linear_bias=bias)
    assert [which for which, _ in products] == expected  # all of it in the forward pass
    wanted = [x for x in inputs if x.requires_grad]
    if wanted:
        reference = F.cross_entropy(F.linear(hidden, head, bias), target)
        for x, y in zip(grads_of(loss, *wanted), grads_of(reference, *wanted), strict=True):
            torch.testing.assert_close(x, y)
    assert [which for which, _ in products] == expected


def test_no_grad_makes_one_product(products) -> None:
    with torch.no_grad():
        ce.linear_cross_entropy(*leaves()[:2], torch.randint(9, (6,)))
    assert [which for which, _ in products] == ["logits"]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_deferred_gradients_make_one_product_more(products, reduction: str) -> None:
    """For "none", and for float16, whose loss scale is not known before backward."""
    hidden, head, _ = leaves(dtype=F16 if reduction == "mean" else F32)
    loss = ce.linear_cross_entropy(hidden, head, torch.randint(9, (6,)), reduction=reduction)
    assert [which for which, _ in products] == ["logits"]
    loss.sum().backward()
    assert [which for which, _ in products] == ["logits", "logits", "hidden", "head"]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ignored_rows_cost_no_product(products, reduction: str) -> None:
    hidden, head, bias = leaves(rows=20)
    target = torch.full((20,), -100)
    target[[3, 4, 17]] = torch.tensor([1, 5, 8])
    loss = ce.linear_cross_entropy(
        hidden, head, target, linear_bias=bias, reduction=reduction, chunk_rows=2
    )
    expected = F.cross_entropy(F.linear(hidden, head, bias), target, reduction=reduction)
    torch.testing.assert_close(loss, expected)
    inputs = (hidden, head, bias)
    for x, y in zip(grads_of(loss.sum(), *inputs), grads_of(expected.sum(), *inputs), strict=True):
        torch.testing.assert_close(x, y)
    rows = [count for which, count in products if which == "hidden"]
    assert rows == [2, 1]


def test_default_chunk_rows() -> None:
    for on_cpu, share, enough, most_bytes in ((True, 4, 512, 2**27), (False, 2, 4096, 2**31)):
        for num_rows in (0, 1, 5, 100, 1024, 4097, 8192, 100_000):
            for row_bytes in (40, 4 * 32000, 2 * 128256, 4 * 256000, 2**28):
                for features in (1, 64, 512, 8192):
                    rows = chunks.default_chunk_rows(num_rows, features, row_bytes, on_cpu)
                    assert rows >= 1
                    assert rows == 1 or rows * row_bytes <= most_bytes
                    bound = max(1, num_rows / 8, min(num_rows / share, enough), features / 2)
                    assert rows <= math.ceil(bound) + (15 if bound < 1008 else 127)  # rounded up
    assert chunks.default_chunk_rows(4096, 512, 4 * 32000, True) == 512
    assert chunks.default_chunk_rows(8192, 4096, 2 * 128256, False) == 4096
    # 4100 rows are not 4096 and a chunk of 4
    assert chunks.default_chunk_rows(2 * 4096 + 4, 4096, 2 * 32000, False) == 2816
    # few rows beside a large head: one chunk
    assert chunks.default_chunk_rows(256, 512, 4 * 32000, True) == 256
    assert chunks.default_chunk_rows(2048, 4096, 2 * 128256, False) == 2048


# Autograd.


@REDUCTIONS
@pytest.mark.parametrize(
    "options",
    [{}, {"gamma": 2.0, "label_smoothing": 0.1}, {"z_loss": 0.1, "logit_softcap": 5.0}],
    ids=["plain", "focal_smoothing", "z_loss_softcap"],
)
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
def test_derivatives(reduction: str, options: dict, probabilities: bool) -> None:
    target = torch.rand(6, 9, dtype=F64) if probabilities else torch.tensor([1, 2, -100, 8, 0, 3])
    weight = 0.5 + torch.rand(9, dtype=F64)

    def loss(hidden, head, bias):
        return ce.linear_cross_entropy(
            hidden, head, target, linear_bias=bias, weight=weight, reduction=reduction,
            chunk_rows=4, **options,
        )  # fmt: skip

    assert gradcheck(loss, leaves())
    assert gradgradcheck(loss, leaves())


def test_derivatives_of_probabilities_and_weight() -> None:
    target = torch.rand(6, 9, dtype=F64, requires_grad=True)
    weight = torch.rand(9, dtype=F64, requires_grad=True)

    def loss(hidden, head, bias, target, weight):
        return ce.linear_cross_entropy(hidden, head, target, linear_bias=bias, weight=weight)

    assert gradcheck(loss, (*leaves(), target, weight))


@REDUCTIONS
def test_second_backward(reduction: str) -> None:
    """Right, whatever happened to the gradients of the first."""
    inputs = leaves()
    hidden, head, bias = inputs
    loss = ce.linear_cross_entropy(
        hidden, head, torch.randint(9, (6,)), linear_bias=bias, reduction=reduction
    )
    upstream = torch.randn_like(loss)
    first = grads_of(loss, *inputs, grad_outputs=upstream, retain_graph=True)
    kept = [grad.clone() for grad in first]
    for grad in first:
        grad.fill_(float("nan"))
    for x, y in zip(grads_of(loss, *inputs, grad_outputs=3 * upstream), kept, strict=True):
        torch.testing.assert_close(x, 3 * y)
    with pytest.raises(RuntimeError, match="second time"):
        grads_of(loss, *inputs, grad_outputs=upstream)


def test_gradients_accumulate_in_place() -> None:
    hidden, head, bias = leaves()
    target = torch.randint(9, (6,))
    for _ in range(2):
        ce.linear_cross_entropy(hidden, head, target, linear_bias=bias).backward()
    twice = 2 * F.cross_entropy(F.linear(hidden, head, bias), target)
    expected = grads_of(twice, hidden, head, bias)
    for leaf, grad in zip((hidden, head, bias), expected, strict=True):
        torch.testing.assert_close(leaf.grad, grad)


def test_micro_batches_with_a_normalizer_make_the_whole_batch() -> None:
    hidden, head, bias = leaves(rows=10)
    target = torch.randint(9, (10,))
    target[[1, 8]] = -100
    whole = F.cross_entropy(F.linear(hidden, head, bias), target)
    parts = [
        ce.linear_cross_entropy(
            hidden[rows], head, target[rows], linear_bias=bias, normalizer=(target >= 0).sum()
        )
        for rows in (slice(0, 3), slice(3, 9), slice(9, 10))
    ]
    torch.testing.assert_close(sum(parts), whole)
    for part in parts:
        part.backward()
    expected = grads_of(whole, hidden, head, bias)
    for leaf, grad in zip((hidden, head, bias), expected, strict=True):
        torch.testing.assert_close(leaf.grad, grad)


def test_tied_weight() -> None:
    embedding = torch.nn.Embedding(9, 4, dtype=F64)
    tokens = torch.randint(9, (2, 5))
    target = ce.next_token_target(tokens)
    loss = ce.linear_cross_entropy(embedding(tokens).tanh(), embedding.weight, target)
    logits = F.linear(embedding(tokens).tanh(), embedding.weight)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)
    (x,), (y,) = grads_of(loss, embedding.weight), grads_of(expected, embedding.weight)
    torch.testing.assert_close(x, y)


def test_changed_between_forward_and_backward() -> None:
    """The gradient in the forward pass is that of the values then; a recomputed one is refused."""
    target = torch.randint(9, (6,))
    for reduction in ("mean", "none"):
        hidden, head, _ = leaves()
        expected = grads_of(F.cross_entropy(F.linear(hidden, head), target), hidden, head)
        loss = ce.linear_cross_entropy(hidden, head, target, reduction=reduction)
        with torch.no_grad():
            head.mul_(2)
        if reduction == "none":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                grads_of(loss.sum(), hidden, head)
        else:
            for x, y in zip(grads_of(loss, hidden, head), expected, strict=True):
                torch.testing.assert_close(x, y)


@REDUCTIONS
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_under_checkpointing(reduction: str, dtype) -> None:
    """Which refuses that a saved tensor is unpacked twice."""
    inputs, target = leaves(dtype=dtype), torch.randint(9, (6,))

    def loss(hidden, head, bias):
        loss = ce.linear_cross_entropy(
            hidden * 1, head, target, linear_bias=bias, reduction=reduction
        )
        return loss.sum()

    checkpointed = torch.utils.checkpoint.checkpoint(loss, *inputs, use_reentrant=False)
    for x, y in zip(grads_of(checkpointed, *inputs), grads_of(loss(*inputs), *inputs), strict=True):
        assert_same_bits(x, y)


@REDUCTIONS
def test_batched_gradients(reduction: str) -> None:
    inputs, target = leaves(), torch.randint(9, (6,))
    loss = ce.linear_cross_entropy(inputs[0], inputs[1], target, reduction=reduction)
    upstreams = torch.randn(3, *loss.shape, dtype=F64)
    received = grads_of(
        loss, *inputs[:2], grad_outputs=upstreams, retain_graph=True, is_grads_batched=True
    )
    for i, upstream in enumerate(upstreams):
        expected = grads_of(loss, *inputs[:2], grad_outputs=upstream, retain_graph=True)
        for x, y in zip(received, expected, strict=True):
            torch.testing.assert_close(x[i], y)


def test_second_derivative_of_a_tied_head() -> None:
    """The embedding's own path is not counted twice."""
    weight, tokens = torch.randn(9, 4, dtype=F64, requires_grad=True), torch.randint(9, (6,))

    def by(loss) -> Tensor:
        hidden = F.embedding(tokens, weight).sin()
        (grad,) = torch.autograd.grad(loss(hidden, weight), weight, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), weight)[0]

    target = ce.next_token_target(tokens)
    torch.testing.assert_close(
        by(lambda hidden, head: ce.linear_cross_entropy(hidden, head, target)),
        by(lambda hidden, head: F.cross_entropy(F.linear(hidden, head), target)),
    )


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_second_derivative_in_low_precision(dtype) -> None:
    problem = make_linear_problem("mean", dtype)

    def second(problem: LinearProblem, loss, cast=None) -> Tensor:
        hidden, head = (x.detach().requires_grad_() for x in (problem.hidden, problem.head))
        with torch.autocast("cpu", dtype=dtype, enabled=cast is not None):
            value = loss(hidden, head, problem.target)
        (grad,) = torch.autograd.grad(value, hidden, create_graph=True)
        return torch.autograd.grad(grad.float().square().sum(), head)[0].double()

    exact = second(problem.to(F64), lambda h, w, t: by_reference(h, w, t, linear_bias=None))
    for given, cast in ((problem, None), (problem.to(F32), dtype)):
        error = second(given, ce.linear_cross_entropy, cast) - exact
        assert error.norm() / exact.norm() < 16 * torch.finfo(dtype).eps


def test_float16_under_a_loss_scale() -> None:
    """Gradients that underflow without the scale are there with it."""
    rows, scale = 4096, 65536.0
    hidden = torch.randn(rows, 8, dtype=F16, requires_grad=True)
    head = (0.02 * torch.randn(64, 8)).to(F16).requires_grad_()
    target = torch.randint(64, (rows,))
    loss = ce.linear_cross_entropy(hidden, head, target)
    grads = grads_of(loss * scale, hidden, head)
    exact = [x.detach().double().requires_grad_() for x in (hidden, head)]
    expected = grads_of(F.cross_entropy(F.linear(*exact), target) * scale, *exact)
    for x, y in zip(grads, expected, strict=True):
        assert ((x.double() - y).norm() / y.norm()).item() < 1e-3
    assert (expected[0] / scale).abs().median() < torch.finfo(F16).smallest_normal  # hard enough


@pytest.mark.parametrize("low", [BF16, F16], ids=str)
@pytest.mark.parametrize("hidden_dtype", ["low", F32], ids=str)
@REDUCTIONS
def test_autocast(low, hidden_dtype, reduction: str, monkeypatch) -> None:
    """A float32 head beside hidden states of either dtype; products in the low one."""
    monkeypatch.setattr(chunks, "_cpu_multiplies", lambda dtype: True)
    problem = make_linear_problem("mean", F32)
    rows = len(problem.target)
    hidden = problem.hidden.to(low).to(low if hidden_dtype == "low" else F32)
    problem = replace(
        problem, hidden=hidden, grad_loss=torch.randn(rows if reduction == "none" else ()).double()
    )
    with torch.autocast("cpu", dtype=low):
        result = ours(problem, reduction=reduction, chunk_rows=16)
    exact = evaluate(by_reference, problem.to(F64), reduction=reduction)
    for name, value in result.items():
        assert value.dtype == (hidden.dtype if name == "grad_hidden" else F32)
        error = (value.double() - exact[name]).norm() / exact[name].norm()
        assert error < 4 * torch.finfo(low).eps, name
        assert error > torch.finfo(low).eps / 50 or name == "loss"  # the products were in `low`


@pytest.mark.parametrize("given", [F32, F16], ids=str)
def test_float16_autocast_waits_for_the_loss_scale(products, given) -> None:
    hidden, head, _ = leaves(dtype=F32)
    hidden = hidden.to(given)
    with torch.autocast("cpu", dtype=F16):
        ce.linear_cross_entropy(hidden, head, torch.randint(9, (6,)))
    assert [which for which, _ in products] == ["logits"]


def test_a_float16_input_waits_for_the_loss_scale_under_bfloat16_autocast(products) -> None:
    hidden, head, _ = leaves(dtype=F32)
    with torch.autocast("cpu", dtype=BF16):
        ce.linear_cross_entropy(hidden.half(), head, torch.randint(9, (6,)))
    assert [which for which, _ in products] == ["logits"]


def test_sums_over_chunks_are_not_rounded(monkeypatch) -> None:
    """Of a bfloat16 head: 2000 chunks, summed in float32 and in bfloat16; the loss in float64."""
    monkeypatch.setattr(chunks, "_cpu_multiplies", lambda dtype: True)
    hidden = torch.rand(2000, 4, dtype=BF16)
    head = torch.rand(9, 4, dtype=BF16, requires_grad=True)
    target = torch.randint(9, (2000,))
    exact = head.detach().double().requires_grad_()
    truth = F.cross_entropy(F.linear(hidden.double(), exact), target)
    (expected,) = grads_of(truth, exact)
    errors = {}
    for dtype in (None, BF16):
        loss = ce.linear_cross_entropy(hidden, head, target, chunk_rows=1, accumulate_dtype=dtype)
        (grad,) = grads_of(loss, head)
        errors[dtype] = ((grad.double() - expected).norm() / expected.norm()).item()
    assert errors[None] < 2e-3 < 2e-2 < errors[BF16]
    hidden, head = hidden.float(), head.detach().float()
    loss = ce.linear_cross_entropy(hidden, head, target, chunk_rows=1)
    assert abs(loss.item() / truth.item() - 1) < 2.0**-23


def test_autocast_does_not_round_the_sum_over_chunks(monkeypatch) -> None:
    monkeypatch.setattr(chunks, "_cpu_multiplies", lambda dtype: True)
    hidden, head, _ = leaves(dtype=F32)
    with torch.autocast("cpu", dtype=BF16):
        loss = ce.linear_cross_entropy(hidden, head, torch.randint(9, (6,)), chunk_rows=2)
    (grad,) = grads_of(loss, head)
    assert not torch.equal(grad, grad.bfloat16().float())


def test_autocast_leaves_float64_alone() -> None:
    hidden, head, bias = leaves()
    with torch.autocast("cpu", dtype=BF16):
        loss = ce.linear_cross_entropy(hidden, head, torch.randint(9, (6,)), linear_bias=bias)
    assert loss.dtype == F64


# torch.compile, torch.export, torch.func.


@REDUCTIONS
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(reduction: str, dynamic: bool, backend: str) -> None:
    torch._dynamo.reset()

    def loss(hidden, head, bias, target):
        return ce.linear_cross_entropy(
            hidden.tanh(), head, target, linear_bias=bias, reduction=reduction, gamma=1.5
        )

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend=backend)
    for dtype in (F32, BF16, F16):
        inputs = leaves(dtype=dtype)
        target = torch.tensor([1, 2, -100, 8, 0, 3])
        expected, received = loss(*inputs, target), compiled(*inputs, target)
        torch.testing.assert_close(received, expected)
        upstream = torch.randn_like(expected)
        for x, y in zip(
            grads_of(received, *inputs, grad_outputs=upstream),
            grads_of(expected, *inputs, grad_outputs=upstream),
            strict=True,
        ):
            torch.testing.assert_close(x, y)


def test_a_compiled_gradient_takes_the_upstream_factor_unrounded() -> None:
    """1.003 in bfloat16 is 1, which would be an error of the whole gradient in one direction."""
    torch._dynamo.reset()
    hidden = torch.randn(64, 32, dtype=BF16, requires_grad=True)
    head = torch.randn(500, 32, dtype=BF16)
    target = torch.randint(500, (64,))
    compiled = torch.compile(ce.linear_cross_entropy, fullgraph=True, backend="aot_eager")
    grads = [grads_of(loss(hidden, head, target), hidden, grad_outputs=torch.tensor(factor))[0]
             for loss, factor in ((ce.linear_cross_entropy, 1.0), (compiled, 1.003))]  # fmt: skip
    one, scaled = (grad.double() for grad in grads)
    assert abs((one * scaled).sum() / one.square().sum() / 1.003 - 1) < 5e-4


@pytest.mark.parametrize("frozen", ["hidden", "head", None])
def test_compile_under_autocast(frozen: str | None) -> None:
    torch._dynamo.reset()
    hidden, head, bias = leaves(dtype=F32)
    if frozen:
        {"hidden": hidden, "head": head}[frozen].requires_grad_(False)
    target = torch.randint(9, (6,))

    def loss():
        with torch.autocast("cpu", dtype=BF16):
            return ce.linear_cross_entropy(hidden, head, target, linear_bias=bias)

    inputs = [x for x in (hidden, head, bias) if x.requires_grad]
    expected = loss()
    received = torch.compile(loss, fullgraph=True, backend="aot_eager")()
    assert_same_bits(received, expected)
    for x, y in zip(grads_of(received, *inputs), grads_of(expected, *inputs), strict=True):
        assert_same_bits(x, y)


def test_compiled_backward_twice() -> None:
    torch._dynamo.reset()
    inputs = leaves(dtype=F32)
    target = torch.randint(9, (6,))

    def loss(hidden, head, bias):
        return ce.linear_cross_entropy(hidden, head, target, linear_bias=bias)

    received = torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs)
    first = grads_of(received, *inputs, retain_graph=True)
    kept = [grad.clone() for grad in first]
    for grad in first:
        grad.fill_(float("nan"))
    for x, y in zip(grads_of(received * 2, *inputs), kept, strict=True):
        torch.testing.assert_close(x, 2 * y)


def test_export() -> None:
    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 9)
            self.loss = ce.LinearCrossEntropyLoss(label_smoothing=0.1)

        def forward(self, hidden, target):
            return self.loss(hidden, self.linear.weight, target, self.linear.bias)

    head = Head()
    inputs = (torch.randn(2, 3, 4), torch.randint(9, (2, 3)))
    exported = torch.export.export(head, inputs)
    torch.testing.assert_close(exported.module()(*inputs), head(*inputs))


def test_function_transforms() -> None:
    hidden, head, _ = (x.detach() for x in leaves())
    target = torch.randint(9, (6,))

    def loss(hidden, head):
        return ce.linear_cross_entropy(hidden, head, target, gamma=2.0)

    def plain(hidden, head):
        return by_reference(hidden, head, target, linear_bias=None, gamma=2.0)

    both = (0, 1)
    for x, y in zip(
        torch.func.grad(loss, both)(hidden, head),
        torch.func.grad(plain, both)(hidden, head),
        strict=True,
    ):
        torch.testing.assert_close(x, y)
    primals, tangents = (hidden, head), (torch.randn_like(hidden), torch.randn_like(head))
    torch.testing.assert_close(
        torch.func.jvp(loss, primals, tangents), torch.func.jvp(plain, primals, tangents)
    )
    heads = torch.stack([head, 2 * head])
    torch.testing.assert_close(
        torch.func.vmap(loss, (None, 0))(hidden, heads),
        torch.stack([plain(hidden, head), plain(hidden, 2 * head)]),
    )


def test_fake_tensors() -> None:
    with torch._subclasses.FakeTensorMode():
        hidden, head = torch.empty(6, 4, requires_grad=True), torch.empty(9, 4, requires_grad=True)
        target = torch.empty(6, dtype=torch.int64)
        for reduction, shape in (("mean", ()), ("none", (6,))):
            loss = ce.linear_cross_entropy(hidden, head, target, reduction=reduction)
            assert (loss.shape, loss.dtype) == (shape, F32)
            assert [x.shape for x in grads_of(loss.sum(), hidden, head)] == [(6, 4), (9, 4)]


# The module, and the target of a causal language model.


def test_module() -> None:
    weight = torch.rand(9)
    module = ce.LinearCrossEntropyLoss(weight, gamma=2.0, reduction="sum", chunk_rows=2)
    assert list(module.state_dict()) == ["weight"]
    assert not list(module.parameters())
    hidden, head, bias = leaves(dtype=F32)
    target = torch.randint(9, (6,))
    assert_same_bits(
        module(hidden, head, target, bias),
        ce.linear_cross_entropy(
            hidden, head, target, linear_bias=bias, weight=weight, gamma=2.0, reduction="sum",
            chunk_rows=2,
        ),
    )  # fmt: skip
    module.reduction = "none"
    assert module(hidden, head, target).shape == (6,)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (3, 1), (2, 0), (2, 2, 3)], ids=str)
def test_next_token_target(shape: tuple[int, ...]) -> None:
    tokens = torch.randint(9, shape)
    target = ce.next_token_target(tokens, ignore_index=-1)
    assert (target.shape, target.dtype) == (tokens.shape, tokens.dtype)
    assert torch.equal(target[..., :-1], tokens[..., 1:])
    assert (target[..., -1:] == -1).all()


@pytest.mark.parametrize(
    ("error", "tokens"),
    [
        (ValueError, torch.tensor(1)),
        (TypeError, torch.rand(3)),
        (TypeError, torch.rand(3) > 0),
        (TypeError, torch.rand(3) + 0j),
        (ValueError, torch.ones(3).byte()),
    ],
)
def test_tokens_without_a_next(error: type[Exception], tokens: Tensor) -> None:
    with pytest.raises(error, match="tokens|ignore_index is -100"):
        ce.next_token_target(tokens)


@pytest.mark.parametrize("ignore_index", [None, 1.5, True])
def test_tokens_to_ignore(ignore_index) -> None:
    with pytest.raises(TypeError, match="ignore_index must be an int"):
        ce.next_token_target(torch.tensor([1, 2]), ignore_index)


# Bad input.


HIDDEN, HEAD, TARGET = torch.randn(4, 3), torch.randn(5, 3), torch.tensor([0, 4, 2, 1])


NO_SHAPE = torch.tensor(1.0)
KERNELS = torch.randn(5, 2, 3)  # a head of two positions
LEARNED = torch.ones(5, requires_grad=True)
BAD = [
    (TypeError, "input must be a Tensor", {"input": None}),
    (TypeError, "linear_weight must be a Tensor", {"linear_weight": None}),
    (TypeError, "linear_bias must be a Tensor", {"linear_bias": 1.0}),
    (TypeError, "target must be a Tensor", {"target": [0, 1, 2, 3]}),
    (NotImplementedError, "linear_weight has dtype torch.int64", {"linear_weight": HEAD.long()}),
    (RuntimeError, "input is a scalar", {"input": NO_SHAPE}),
    (RuntimeError, r"linear_weight has shape \[3\]", {"linear_weight": HEAD[0]}),
    (
        RuntimeError,
        r"input has shape \[4, 3\] and linear_weight \[3, 5\]",
        {"linear_weight": HEAD.T},
    ),
    (RuntimeError, r"bias has shape \[4\].*must have shape \[5\]", {"linear_bias": torch.ones(4)}),
    (RuntimeError, "weight has dtype torch.float64.*float32", {"linear_weight": HEAD.double()}),
    (RuntimeError, "bias has dtype torch.float16", {"linear_bias": torch.ones(5).half()}),
    (RuntimeError, r"target has shape \[3\].*must have shape \[4\]", {"target": TARGET[:3]}),
    (RuntimeError, r"\[4, 5\].*class indices", {"target": torch.ones(4, 5).long()}),
    (RuntimeError, r"\[4\] and dtype torch.float32", {"target": TARGET.float()}),
    (RuntimeError, r"\(N, D\), not \[3\]", {"input": HIDDEN[0], "linear_weight": KERNELS}),
    (RuntimeError, "int16", {"target": TARGET.short()}),
    (RuntimeError, r"weight has shape \[4\]", {"weight": torch.ones(4)}),
    (RuntimeError, "weight requires grad", {"weight": LEARNED}),
    (RuntimeError, "ignore_index is 0", {"target": torch.rand(4, 5), "ignore_index": 0}),
    (RuntimeError, "label_smoothing is 2", {"label_smoothing": 2.0}),
    (ValueError, "reduction is 'max'", {"reduction": "max"}),
    (ValueError, "normalizer needs", {"normalizer": 2.0, "reduction": "sum"}),
    (ValueError, "gamma is -1", {"gamma": -1.0}),
    (ValueError, "chunk_rows is 0", {"chunk_rows": 0}),
    (TypeError, "chunk_rows must be an int", {"chunk_rows": 2.5}),
    (TypeError, "chunk_rows must be an int", {"chunk_rows": True}),
    (ValueError, "accumulate_dtype is torch.float16", {"accumulate_dtype": F16}),
    (TypeError, "inplace", {"inplace": True}),
]


@pytest.mark.parametrize(("error", "message", "changed"), BAD, ids=[row[1] for row in BAD])
def test_bad_input(error: type[Exception], message: str, changed: dict) -> None:
    good = {"input": HIDDEN, "linear_weight": HEAD, "target": TARGET}
    ce.linear_cross_entropy(**good)
    with pytest.raises(error, match=message):
        ce.linear_cross_entropy(**{**good, **changed})


LEARNED_NORMALIZER = torch.tensor(4.0, requires_grad=True)
SOFT = torch.rand(4, 5, requires_grad=True)


@pytest.mark.parametrize(
    ("error", "message", "changed"),
    [
        (IndexError, "Target 77 is out of bounds: row 3", {"target": torch.tensor([0, 1, 2, 77])}),
        (RuntimeError, "label_smoothing is 2", {"label_smoothing": 2.0}),
        (ValueError, "gamma is -1", {"gamma": -1.0}),
        (RuntimeError, r"weight has shape \[1\]", {"weight": torch.ones(1)}),
        (RuntimeError, "int16", {"target": TARGET.short()}),
        (RuntimeError, "ignore_index is 3", {"target": SOFT, "ignore_index": 3}),
        (ValueError, "accumulate_dtype", {"accumulate_dtype": F16}),
    ],
)
def test_bad_input_where_plain_pytorch_computes(error, message: str, changed: dict) -> None:
    """For a gradient to the normalizer, and inside transforms."""
    good = {"input": HIDDEN, "linear_weight": HEAD, "target": TARGET}
    ce.linear_cross_entropy(**good, normalizer=LEARNED_NORMALIZER)
    with pytest.raises(error, match=message):
        ce.linear_cross_entropy(**{**good, **changed}, normalizer=LEARNED_NORMALIZER)
    with pytest.raises(error, match=message):
        torch.func.grad(lambda x: ce.linear_cross_entropy(**{**good, **changed, "input": x}))(
            HIDDEN
        )


@pytest.mark.parametrize("name", ["linear_weight", "linear_bias", "target", "weight", "normalizer"])
def test_another_device(name: str) -> None:
    good = {"input": HIDDEN, "linear_weight": HEAD, "target": TARGET, "linear_bias": HEAD[:, 0]}
    good |= {"weight": torch.ones(5), "normalizer": torch.tensor(4.0)}
    with pytest.raises(RuntimeError, match=f"{name} is on meta, but input is on cpu"):
        ce.linear_cross_entropy(**{**good, name: good[name].to("meta")})


@pytest.mark.parametrize(("features", "classes"), [(0, 5), (3, 0)])
def test_no_features_or_classes(features: int, classes: int) -> None:
    hidden, head = torch.randn(4, features), torch.randn(classes, features)
    target = torch.full((4,), -100 if classes == 0 else 1)
    loss = ce.linear_cross_entropy(hidden, head, target, reduction="sum")
    expected = F.cross_entropy(F.linear(hidden, head), target, reduction="sum")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("bad", [5, -1, 2**32])
def test_bad_class_index_is_named_by_its_row(products, reduction: str, bad: int) -> None:
    target = torch.tensor([0, -100, 2, 1, 3, bad, 2])
    with pytest.raises(IndexError, match=f"Target {bad} is out of bounds: row 5 of target"):
        ce.linear_cross_entropy(torch.randn(7, 3), HEAD, target, reduction=reduction, chunk_rows=2)
    assert not products  # before any work
