"""Everything PyTorch does with a function: compile, export, autocast, transforms, modules."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_same_bits
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacrev, jvp, vjp, vmap

import torchce_cuda as ce
from torchce_cuda import reference

pytestmark = pytest.mark.usefixtures("one_thread")
ON_EACH_DEVICE = pytest.mark.usefixtures("on_each_device")

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
DTYPES = pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=["f64", "f32", "bf16", "f16"])
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
OPTION_SETS = {
    "plain": {},
    "focal": {"gamma": 2.0},
    "smoothing": {"label_smoothing": 0.1},
    "everything": {"gamma": 1.5, "label_smoothing": 0.1, "z_loss": 1e-3, "logit_softcap": 20.0},
}
OPTIONS = pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS)


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype = F32, probabilities: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.randn(shape).to(dtype)
    if probabilities:
        target = torch.rand(shape).to(dtype)
    else:
        target = torch.randint(shape[1], (shape[0], *shape[2:]))
        target.view(-1)[0] = -100
    return logits, target, torch.rand(shape[1]).to(dtype)


def test_tensors_may_lie_elsewhere_than_where_new_ones_do() -> None:
    logits, target, weight = make_inputs((5, 7))
    soft = torch.rand(5, 7, requires_grad=True)  # wants a gradient, and so the composition
    head = torch.randn(7, 7)

    def losses() -> list[Tensor]:
        return [
            ce.cross_entropy(logits, target, weight, normalizer=3.0),
            ce.cross_entropy(logits, soft, weight),
            ce.linear_cross_entropy(logits, head, target, normalizer=3.0),
            ce.linear_cross_entropy(logits, head, soft),
            ce.sigmoid_focal_loss(logits, soft.detach()),
            ce.sigmoid_focal_loss(logits, soft),
            ce.next_token_target(target),
        ]

    expected = losses()
    with torch.device("meta"):
        received = losses()
    for x, y in zip(received, expected, strict=True):
        assert_same_bits(x.detach(), y.detach())


# The operators: each of them, as `torch.library.opcheck` sees it.


def operator_samples(dtype: torch.dtype) -> dict[str, list[tuple[tuple, dict]]]:
    """Arguments by operator name: rows and positions, both kinds of target, some options."""
    ops = torch.ops.torchce
    accumulator = torch.promote_types(dtype, F32)
    samples = {name: [] for name in dir(ops) if hasattr(getattr(ops, name), "overloads")}
    for shape in ((5, 7), (2, 5, 3)):
        for probabilities in (False, True):
            logits, target, weight = make_inputs(shape, dtype, probabilities)
            for options, given in (
                ({}, None),
                ({"gamma": 2.0, "label_smoothing": 0.1}, weight.to(accumulator)),
                ({"reduction": 0, "z_loss": 0.1}, None),
            ):
                forward = (logits.clone(), target, given)
                loss, state = ops.cross_entropy_forward(*forward, **options)
                backward = (torch.randn_like(loss), logits.clone(), target, state, given)
                samples["cross_entropy_forward"].append((forward, options))
                samples["cross_entropy_divisor"].append((forward, options))
                samples["cross_entropy_backward"].append((backward, options))
                samples["cross_entropy_backward_"].append((backward, options))
                if "reduction" not in options:
                    samples["cross_entropy_forward_backward"].append((forward, options))
                    samples["cross_entropy_forward_backward_"].append((forward, options))
                hidden, head = torch.randn(5, 4).to(dtype), torch.randn(7, 4).to(dtype)
                if len(shape) == 2:
                    plan = {
                        "num_classes": 7,
                        "wanted": [True] * 3,
                        "compute_dtype": dtype,
                        "accumulate_dtype": accumulator,
                        "chunk_rows": 2,
                    }
                    rest = (target, head[:, 0], given, None, torch.ones_like(loss))
                    linear = ((hidden, head, *rest), {**options, **plan})
                    samples["linear_cross_entropy"].append(linear)
    logits = torch.randn(3, 5).to(dtype)
    inputs = (logits, torch.rand(3, 5).to(dtype), None, torch.rand(5).to(dtype).expand(3, 5))
    for options in ({}, {"gamma": 2.0, "alpha": 0.25, "ignore_value": -1.0, "reduction": 0}):
        loss, divisor = ops.sigmoid_focal_forward(*inputs, **options)
        backward = (torch.ones_like(loss).expand(3, 5), *inputs[:2], divisor, *inputs[2:])
        samples["sigmoid_focal_forward"].append((inputs, options))
        samples["sigmoid_focal_backward"].append((backward, options))
    factor = torch.tensor(2.0, dtype=accumulator)
    samples["scale_"].append(((torch.randn(10).to(dtype), factor), {}))
    samples["check_targets"] += [((True,), {}), ((), {})]
    return samples


@DTYPES
@ON_EACH_DEVICE
def test_opcheck(dtype: torch.dtype) -> None:
    for name, samples in operator_samples(dtype).items():
        assert samples, f"{name} is not checked"
        for arguments, options in samples:
            torch.library.opcheck(getattr(torch.ops.torchce, name).default, arguments, options)


# torch.compile and torch.export


def loss_and_grads(function, *tensors: Tensor, **options) -> list[Tensor]:
    """The loss and its gradients to all that requires one, by a fixed upstream gradient."""
    loss = function(*tensors, **options)
    leaves = [x for x in tensors if x.requires_grad]
    upstream = torch.linspace(-1, 2, loss.numel()).view_as(loss).to(loss)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, upstream)]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@OPTIONS
@ON_EACH_DEVICE
def test_compile(dynamic: bool, probabilities: bool, options: dict) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(ce.cross_entropy, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for reduction in ("mean", "none"):
        for shape in ((4, 7), (2, 7, 3)):
            logits, target, weight = make_inputs(shape, probabilities=probabilities)
            tensors = (logits.requires_grad_(), target, weight)
            arguments = {"reduction": reduction, **options}
            expected = loss_and_grads(ce.cross_entropy, *tensors, **arguments)
            for x, y in zip(loss_and_grads(compiled, *tensors, **arguments), expected, strict=True):
                assert_same_bits(x, y)


def test_compile_of_other_sizes_does_not_recompile() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(ce.cross_entropy, fullgraph=True, dynamic=True, backend="aot_eager")

    def run(shape: tuple[int, ...]) -> None:
        logits, target, weight = make_inputs(shape)
        tensors = (logits.requires_grad_(), target, weight)
        expected = loss_and_grads(ce.cross_entropy, *tensors, gamma=2.0)
        for x, y in zip(loss_and_grads(compiled, *tensors, gamma=2.0), expected, strict=True):
            assert_same_bits(x, y)

    run((4, 7))
    with torch.compiler.set_stance("fail_on_recompile"):
        run((9, 7))
        run((5, 33))


@DTYPES
@ON_EACH_DEVICE
def test_compile_of_every_dtype(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(ce.cross_entropy, fullgraph=True, backend="aot_eager")
    logits, target, weight = make_inputs((4, 7), dtype)
    logits.requires_grad_()
    expected = loss_and_grads(ce.cross_entropy, logits, target, weight)
    for x, y in zip(loss_and_grads(compiled, logits, target, weight), expected, strict=True):
        assert_same_bits(x, y)


@ON_EACH_DEVICE
def test_compile_of_gradients_to_probabilities_and_weight() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(ce.cross_entropy, fullgraph=True, backend="aot_eager")
    tensors = [x.requires_grad_() for x in make_inputs((4, 7), probabilities=True)]
    expected = loss_and_grads(ce.cross_entropy, *tensors, gamma=1.5)
    for x, y in zip(loss_and_grads(compiled, *tensors, gamma=1.5), expected, strict=True):
        torch.testing.assert_close(x, y)


def test_compile_of_a_module_and_its_normalizer() -> None:
    torch._dynamo.reset()
    logits, target, weight = make_inputs((4, 7))
    module = ce.FocalLoss(weight, gamma=2.0, inplace=True)
    module.normalizer = torch.tensor(3.0)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    source = logits.requires_grad_()
    expected = torch.autograd.grad(module(source * 1, target), source)[0]
    (received,) = torch.autograd.grad(compiled(source * 1, target), source)
    torch.testing.assert_close(received, expected)


@pytest.mark.slow
def test_compile_by_inductor_among_other_operations() -> None:
    """The strides that inductor chooses for logits are read where they lie."""
    torch._dynamo.reset()
    hidden, head = torch.randn(2, 6, 8, requires_grad=True), torch.randn(33, 8, requires_grad=True)
    target = torch.randint(33, (2, 6))

    def step(function, hidden: Tensor, head: Tensor) -> Tensor:
        logits = (F.gelu(hidden) @ head.T).transpose(1, 2) * 2
        return function(logits, target, label_smoothing=0.1, reduction="none").square().mean()

    expected = torch.autograd.grad(step(F.cross_entropy, hidden, head), (hidden, head))
    compiled = torch.compile(lambda *leaves: step(ce.cross_entropy, *leaves), fullgraph=True)
    received = torch.autograd.grad(compiled(hidden, head), (hidden, head))
    torch.testing.assert_close(received, expected)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@OPTIONS
def test_export(dynamic: bool, options: dict) -> None:
    logits, target, weight = make_inputs((4, 7))
    module = ce.CrossEntropyLoss(weight, **options)
    rows = torch.export.Dim("rows", min=2) if dynamic else None
    shapes = {"input": {0: rows}, "target": {0: rows}} if dynamic else None
    program = torch.export.export(module, (logits, target), dynamic_shapes=shapes)
    assert_same_bits(program.module()(logits, target), module(logits, target))
    if dynamic:
        logits, target, _ = make_inputs((9, 7))
        assert_same_bits(program.module()(logits, target), module(logits, target))


@DTYPES
@REDUCTIONS
@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_fake_and_meta_tensors(dtype: torch.dtype, reduction: str, kind: str) -> None:
    """Shapes and dtypes without numbers: no value is looked at, also not that of the target."""
    for shape in ((4, 7), (2, 7, 3, 5), (7,)):
        row_shape = shape[:0] if len(shape) == 1 else (shape[0], *shape[2:])
        with FakeTensorMode() if kind == "fake" else torch.device("meta"):
            logits = torch.empty(shape, dtype=dtype, requires_grad=True)
            target = torch.empty(row_shape, dtype=torch.int64)
            loss = ce.cross_entropy(logits, target, reduction=reduction, gamma=2.0)
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.shape == (row_shape if reduction == "none" else ())
        assert loss.dtype == torch.promote_types(dtype, F32)
        assert (gradient.shape, gradient.dtype) == (shape, dtype)


def test_fake_strides_are_the_real_ones() -> None:
    """A gradient laid out in another way than promised would corrupt a compiled program."""
    real = torch.randn(2, 6, 4, 5)
    for view in (
        real,
        real.permute(0, 3, 1, 2),
        real.to(memory_format=torch.channels_last),
        real[:, :, ::2, 1:],
        real[:1].expand(3, 6, 4, 5),
        real[0, 0].T,
    ):
        logits = view.detach().requires_grad_()
        row_shape = (logits.shape[0], *logits.shape[2:])
        strides = []
        for mode in (None, FakeTensorMode()):
            x = logits if mode is None else mode.from_tensor(logits)
            target = torch.zeros(row_shape, dtype=torch.int64)
            y = target if mode is None else mode.from_tensor(target)
            (gradient,) = torch.autograd.grad(ce.cross_entropy(x, y), x)
            strides.append(gradient.stride())
        assert strides[0] == strides[1]


# Autocast


@DTYPES
@pytest.mark.parametrize("low", [BF16, F16], ids=["to bf16", "to f16"])
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
def test_autocast(dtype: torch.dtype, low: torch.dtype, probabilities: bool) -> None:
    """The loss in float32, or float64 for float64, and gradients in the dtype of each tensor."""
    logits, target, _ = make_inputs((4, 7), dtype, probabilities)
    logits.requires_grad_()
    weight = torch.rand(7, dtype=torch.promote_types(dtype, F32))
    with torch.autocast("cpu", dtype=low):
        loss = ce.cross_entropy(logits, target, weight)
        theirs = F.cross_entropy(logits, target, weight)
    assert loss.dtype == theirs.dtype
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.dtype == dtype
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, torch.autograd.grad(theirs, logits)[0])


def test_autocast_of_a_layer() -> None:
    layer, data = nn.Linear(8, 33), torch.randn(16, 8)
    target = torch.randint(33, (16,))
    with torch.autocast("cpu", dtype=BF16):
        logits = layer(data)
        assert logits.dtype == BF16
        losses = [
            f(logits, target, label_smoothing=0.1) for f in (ce.cross_entropy, F.cross_entropy)
        ]
    grads = [torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for loss in losses]
    assert losses[0].dtype == F32
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("weight_dtype", [F64, F32, BF16, F16], ids=str)
def test_weight_of_another_dtype(weight_dtype: torch.dtype) -> None:
    """A superset of PyTorch: the weight is brought to the dtype of the loss."""
    logits, target, weight = make_inputs((4, 7), BF16)
    weight = weight.to(weight_dtype)
    loss = ce.cross_entropy(logits, target, weight)
    expected = F.cross_entropy(logits.double(), target, weight.double())
    torch.testing.assert_close(loss, expected.float())


# Derivatives of derivatives, and torch.func


@OPTIONS
@ON_EACH_DEVICE
def test_double_backward_in_float32(options: dict) -> None:
    logits, target, weight = make_inputs((4, 7))
    results = []
    for function, dtype in ((ce.cross_entropy, F32), (reference.cross_entropy, F64)):
        x = logits.detach().to(dtype).requires_grad_()
        loss = function(x, target, weight.to(dtype), **options)
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum() + loss, x)
        results += [first.detach().double(), second.double()]
    torch.testing.assert_close(results[0], results[2], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(results[1], results[3], rtol=1e-5, atol=1e-7)


def in_float64(probabilities: bool, batch: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    logits = torch.randn(*batch, 4, 5, dtype=F64)
    if probabilities:
        return logits, torch.rand(*batch, 4, 5, dtype=F64)
    target = torch.randint(5, (*batch, 4))
    target[..., 0] = -100
    return logits, target


@OPTIONS
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@ON_EACH_DEVICE
def test_func_transforms(options: dict, probabilities: bool) -> None:
    logits, target = in_float64(probabilities)
    tangent = torch.randn_like(logits)
    weight = torch.rand(5, dtype=F64)

    def loss(x: Tensor) -> Tensor:
        return ce.cross_entropy(x, target, weight, **options)

    leaf = logits.clone().requires_grad_()
    value = loss(leaf)
    (expected,) = torch.autograd.grad(value, leaf, create_graph=True)
    (expected_hvp,) = torch.autograd.grad(expected, leaf, tangent)
    torch.testing.assert_close(grad(loss)(logits), expected.detach())
    torch.testing.assert_close(jacrev(loss)(logits), expected.detach())
    value_again, pull_back = vjp(loss, logits)
    torch.testing.assert_close(value_again, value.detach())
    torch.testing.assert_close(pull_back(torch.tensor(2.0, dtype=F64))[0], 2 * expected.detach())
    _, slope = jvp(loss, (logits,), (tangent,))
    torch.testing.assert_close(slope, (expected.detach() * tangent).sum())
    curvature = hessian(loss)(logits)
    torch.testing.assert_close((curvature * tangent).sum((-2, -1)), expected_hvp)


@OPTIONS
@REDUCTIONS
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@ON_EACH_DEVICE
def test_vmap(options: dict, reduction: str, probabilities: bool) -> None:
    logits, target = in_float64(probabilities, (3,))
    weight = torch.rand(3, 5, dtype=F64)

    def loss(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return ce.cross_entropy(x, y, w, reduction=reduction, **options)

    def slope(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return grad(lambda x: loss(x, y, w).sum())(x)

    rows = list(zip(logits, target, weight, strict=True))
    for function in (loss, slope):
        batched = vmap(function)(logits, target, weight)
        torch.testing.assert_close(batched, torch.stack([function(*row) for row in rows]))
        shared = vmap(function, in_dims=(0, None, None))(logits, target[0], weight[0])
        one = torch.stack([function(x, target[0], weight[0]) for x in logits])
        torch.testing.assert_close(shared, one)
        targets = vmap(function, in_dims=(None, 0, None))(logits[0], target, weight[0])
        one = torch.stack([function(logits[0], y, weight[0]) for y in target])
        torch.testing.assert_close(targets, one)


def test_per_sample_gradients_of_a_model() -> None:
    layer = nn.Linear(3, 5).double()
    data, target = torch.randn(6, 3, dtype=F64), torch.randint(5, (6,))
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters: dict, x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(layer, parameters, (x,))
        return ce.cross_entropy(logits, y, gamma=2.0)

    samples = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, data, target)
    whole = grad(loss)(parameters, data, target)
    torch.testing.assert_close(samples["weight"].mean(0), whole["weight"])


@OPTIONS
@ON_EACH_DEVICE
def test_forward_mode(options: dict) -> None:
    logits, target = in_float64(False)
    tangent = torch.randn_like(logits)
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ce.cross_entropy(leaf, target, **options), leaf)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, tangent)
        value, slope = forward_ad.unpack_dual(ce.cross_entropy(dual, target, **options))
    torch.testing.assert_close(slope, (gradient * tangent).sum())
    torch.testing.assert_close(value, ce.cross_entropy(logits, target, **options))


# Autograd


@pytest.mark.parametrize("inplace", [False, True])
@REDUCTIONS
def test_no_graph_where_none_is_asked_for(inplace: bool, reduction: str) -> None:
    logits, target, _ = make_inputs((4, 7))
    arguments = {"reduction": reduction, "inplace": inplace}
    assert not ce.cross_entropy(logits, target, **arguments).requires_grad
    logits.requires_grad_()
    with torch.no_grad():
        assert not ce.cross_entropy(logits, target, **arguments).requires_grad
    with torch.inference_mode():
        loss = ce.cross_entropy(logits * 1, target, **arguments)
    assert loss.is_inference()


@REDUCTIONS
@ON_EACH_DEVICE
def test_retained_graph_gives_the_same_gradient(reduction: str) -> None:
    logits, target, _ = make_inputs((4, 7))
    leaf = logits.requires_grad_()
    loss = ce.cross_entropy(leaf * 2, target, reduction=reduction)
    upstream = torch.randn_like(loss)
    first, second = (
        torch.autograd.grad(loss, leaf, upstream, retain_graph=True)[0] for _ in range(2)
    )
    assert_same_bits(first, second)
    (other,) = torch.autograd.grad(loss, leaf, -4 * upstream)
    assert torch.equal(other, -4 * first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaf, upstream)


@ON_EACH_DEVICE
def test_gradients_accumulate() -> None:
    logits, target, _ = make_inputs((4, 7))
    leaf = logits.requires_grad_()
    ce.cross_entropy(leaf, target).backward()
    first = leaf.grad.clone()
    ce.cross_entropy(leaf, target).backward()
    assert torch.equal(leaf.grad, 2 * first)


@pytest.mark.parametrize("shape", [(4, 7), (40, 700)], ids=["early", "late"])
@pytest.mark.parametrize("upstream", [1.0, -0.5])
@pytest.mark.parametrize("changed", ["logits", "target"])
def test_changing_what_backward_needs(shape: tuple, upstream: float, changed: str) -> None:
    """Raises, or gives the gradient of what the forward pass saw (a small problem, upstream 1)."""
    logits, target, _ = make_inputs(shape)
    leaf = logits.clone().requires_grad_()
    expected = torch.autograd.grad(ce.cross_entropy(leaf * 1, target), leaf)[0]
    x = leaf * 1
    loss = ce.cross_entropy(x, target)
    with torch.no_grad():
        (x if changed == "logits" else target).zero_()
    if shape == (4, 7) and upstream == 1.0:
        assert_same_bits(torch.autograd.grad(loss, leaf)[0], expected)
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward(torch.tensor(upstream, dtype=loss.dtype))


@pytest.mark.parametrize("shape", [(4, 7), (40, 700)], ids=["early", "late"])
@ON_EACH_DEVICE
def test_backward_twice(shape: tuple) -> None:
    """The gradient of a small problem is made in forward, and handed out only once."""
    logits, target, _ = make_inputs(shape, F32)
    x = logits.clone().requires_grad_()
    loss = ce.cross_entropy(x, target)
    loss.backward(retain_graph=True)
    once = x.grad.clone()
    loss.backward(retain_graph=True)
    torch.testing.assert_close(x.grad, 2 * once)
    loss.backward()
    torch.testing.assert_close(x.grad, 3 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@ON_EACH_DEVICE
def test_under_checkpointing() -> None:
    logits, target, _ = make_inputs((4, 7))
    leaf = logits.requires_grad_()
    expected = torch.autograd.grad(ce.cross_entropy(leaf.exp(), target), leaf)[0]

    def loss(x: Tensor) -> Tensor:
        return ce.cross_entropy(x.exp(), target)

    received = torch.utils.checkpoint.checkpoint(loss, leaf, use_reentrant=False)
    assert_same_bits(torch.autograd.grad(received, leaf)[0], expected)


def test_saved_tensor_hooks() -> None:
    """Offloading what is saved for backward must not change it."""
    logits, target, _ = make_inputs((4, 7))
    leaf = logits.requires_grad_()
    expected = torch.autograd.grad(ce.cross_entropy(leaf, target), leaf)[0]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.numpy().copy(), torch.from_numpy):
        loss = ce.cross_entropy(leaf, target)
    assert_same_bits(torch.autograd.grad(loss, leaf)[0], expected)


# Modules


def test_weight_is_a_buffer() -> None:
    weight = torch.rand(7)
    for ours, theirs in (
        (ce.CrossEntropyLoss(weight), nn.CrossEntropyLoss(weight)),
        (ce.CrossEntropyLoss(), nn.CrossEntropyLoss()),
        (ce.FocalLoss(weight), nn.CrossEntropyLoss(weight)),
    ):
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert not list(ours.parameters())
        ours.load_state_dict(theirs.state_dict())
    module = ce.CrossEntropyLoss(weight)
    assert module.weight.data_ptr() == weight.data_ptr()  # the caller's own, as in PyTorch
    assert module.double().weight.dtype == F64
    assert repr(ce.CrossEntropyLoss()) == "CrossEntropyLoss()"


@pytest.mark.parametrize("copier", ["pickle", "deepcopy", "torch.save"])
def test_modules_can_be_copied(copier: str) -> None:
    logits, target, weight = make_inputs((4, 7))
    module = ce.FocalLoss(weight, gamma=1.5, label_smoothing=0.1, reduction="none", ignore_index=3)
    if copier == "pickle":
        copied = pickle.loads(pickle.dumps(module))
    elif copier == "deepcopy":
        copied = copy.deepcopy(module)
    else:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    target = target.clamp(min=0)
    assert type(copied) is ce.FocalLoss
    assert copied.weight.data_ptr() != weight.data_ptr()
    assert_same_bits(copied(logits, target), module(logits, target))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ignore_index", 3),
        ("reduction", "sum"),
        ("label_smoothing", 0.2),
        ("gamma", 1.5),
        ("z_loss", 0.1),
        ("logit_scale", 0.5),
        ("logit_softcap", 2.0),
        ("normalizer", 3.0),
    ],
)
def test_attributes_are_read_at_each_call(name: str, value: object) -> None:
    logits, target, weight = make_inputs((4, 7))
    target = target.clamp(min=0)
    module = ce.CrossEntropyLoss(weight)
    before = module(logits, target)
    setattr(module, name, value)
    assert_same_bits(
        module(logits, target), ce.cross_entropy(logits, target, weight, **{name: value})
    )
    if name != "ignore_index":
        assert module(logits, target) != before
