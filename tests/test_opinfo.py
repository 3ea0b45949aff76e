"""PyTorch's own samples for its losses, run against ours."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("expecttest", reason="PyTorch's own samples are in modules that import it")

from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import torchce_cuda as ce

(OP,) = (op for op in op_db if op.name == "nn.functional.cross_entropy")
(MODULE,) = (info for info in module_db if info.module_cls is torch.nn.CrossEntropyLoss)
# Against float32 the loss of a 16-bit sample differs by its rounding, and by PyTorch's on the way.
TOLERANCE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.bfloat16: {"rtol": 2e-2, "atol": 1e-2},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
}


def as_call(sample) -> tuple[list, dict]:
    return [sample.input, *sample.args], dict(sample.kwargs)


def tensors_of(arguments: list, keywords: dict) -> list[Tensor]:
    return [x for x in [*arguments, *keywords.values()] if isinstance(x, Tensor)]


def widened(x):
    """A float32 sample in float64: PyTorch's own float32 sums may be the less exact ones."""
    return x.double() if isinstance(x, Tensor) and x.dtype == torch.float32 else x


def size_of_terms(theirs, arguments: list, keywords: dict) -> float:
    """At least 1: a sum whose terms cancel is as exact as the largest of them."""
    terms = theirs(*arguments, **{**keywords, "reduction": "none"}).detach().double()
    terms = terms[terms.isfinite()].abs()
    return max(1.0, terms.max().item() if terms.numel() else 0.0)


def compare(
    samples: Iterator, dtype: torch.dtype, ours=ce.cross_entropy, theirs=F.cross_entropy
) -> int:
    count = 0
    for sample in samples:
        arguments, keywords = as_call(sample)
        leaves = [x for x in tensors_of(arguments, keywords) if x.requires_grad]
        expected = theirs(
            *map(widened, arguments), **{name: widened(x) for name, x in keywords.items()}
        ).to(dtype)
        received = ours(*arguments, **keywords)
        assert received.shape == expected.shape
        assert received.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(
            received.to(dtype),
            expected,
            equal_nan=True,
            rtol=TOLERANCE[dtype]["rtol"],
            atol=TOLERANCE[dtype]["atol"] * size_of_terms(theirs, arguments, keywords),
        )
        upstream = torch.randn_like(expected)
        for x, y in zip(
            torch.autograd.grad(received, leaves, upstream.to(received.dtype)),
            torch.autograd.grad(expected, leaves, upstream),
            strict=True,
        ):
            torch.testing.assert_close(x, y, equal_nan=True, **TOLERANCE[dtype])
        count += 1
    return count


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_samples(dtype: torch.dtype, device: torch.device) -> None:
    assert compare(OP.sample_inputs(device, dtype, requires_grad=True), dtype) > 20


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_reference_inputs(dtype: torch.dtype, device: torch.device) -> None:
    assert compare(OP.reference_inputs(device, dtype, requires_grad=True), dtype) > 20


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_linear_samples(dtype: torch.dtype, device: torch.device) -> None:
    """In 16 bits PyTorch's samples differ by its own rounding; see `test_linear.py` for those."""
    if not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this torch has no F.linear_cross_entropy")
    (op,) = (
        op
        for op in op_db
        if op.name == "nn.functional.linear_cross_entropy" and not op.variant_test_name
    )
    samples = op.sample_inputs(device, dtype, requires_grad=True)
    assert compare(samples, dtype, ce.linear_cross_entropy, F.linear_cross_entropy) > 20


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_binary_samples(dtype: torch.dtype, device: torch.device) -> None:
    (op,) = (o for o in op_db if o.name == "nn.functional.binary_cross_entropy_with_logits")
    samples = op.sample_inputs(device, dtype, requires_grad=True)
    theirs = F.binary_cross_entropy_with_logits
    assert compare(samples, dtype, ce.binary_cross_entropy_with_logits, theirs) > 10


def test_module_inputs(device: torch.device) -> None:
    """The samples of `nn.CrossEntropyLoss`, constructor arguments included."""
    info = MODULE
    samples = info.module_inputs_func(info, device, torch.float64, True, training=True)
    for sample in samples:
        arguments, keywords = sample.constructor_input.args, sample.constructor_input.kwargs
        ours = ce.CrossEntropyLoss(*arguments, **keywords)
        theirs = torch.nn.CrossEntropyLoss(*arguments, **keywords)
        call = sample.forward_input.args
        torch.testing.assert_close(ours(*call), theirs(*call), equal_nan=True)
    assert len(samples) > 20


@pytest.mark.parametrize("dtype", [torch.float64], ids=str)
def test_samples_without_gradient_and_noncontiguous(
    dtype: torch.dtype, device: torch.device
) -> None:
    """PyTorch's own way to make each sample strided."""
    for sample in OP.sample_inputs(device, dtype, requires_grad=False):
        arguments, keywords = as_call(sample.noncontiguous())
        torch.testing.assert_close(
            ce.cross_entropy(*arguments, **keywords),
            F.cross_entropy(*arguments, **keywords),
            equal_nan=True,
        )
