"""docs/guide.md: its code runs, its table of calls holds, and so do the differences it names.

Where another library is named, the few lines here are its formula, written anew.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchce_cuda as ce

DOCS = Path(__file__).resolve().parent.parent / "docs"
if not DOCS.is_dir():
    pytest.skip("needs the source tree", allow_module_level=True)

GUIDE = (DOCS / "guide.md").read_text()
CALLS = dict(re.findall(r"^\| (.*?) \| `([^`]*\bce\.[^`]*)` \|$", GUIDE, re.MULTILINE))

N, C, D = 12, 5, 7
F32 = torch.float32


def case() -> dict:
    """The names of the guide's table."""
    torch.manual_seed(0)
    y = torch.randint(C, (N,))
    y[:2] = torch.tensor([0, 1])
    return {
        "ce": ce, "nn": nn, "F": F, "torch": torch, "N": N, "C": C,
        "x": 2 * torch.randn(N, C), "y": y, "t": torch.randint(2, (N, C)).float(),
        "q": torch.randn(N, C).softmax(1), "w": 0.5 + torch.rand(C), "n": torch.tensor(9.0),
        "h": torch.randn(N, D), "W": torch.randn(C, D), "b": torch.randn(C),
        "e": 0.1, "z": 1e-2, "s": 0.7, "c": 3.0,
    }  # fmt: skip


# The formulas.


def modulated(x: Tensor, gamma: float = 2.0) -> Tensor:
    """(N, C, ..): (1 - p)^gamma (-log p) of every class."""
    log_p = x.log_softmax(1)
    return (1 - log_p.exp()) ** gamma * -log_p


def binary_focal(x: Tensor, t: Tensor, alpha: float, gamma: float = 2.0) -> Tensor:
    p = x.sigmoid()
    p_t = p * t + (1 - p) * (1 - t)
    loss = F.binary_cross_entropy_with_logits(x, t, reduction="none") * (1 - p_t) ** gamma
    return loss if alpha < 0 else (alpha * t + (1 - alpha) * (1 - t)) * loss


def mmcv_softmax(x: Tensor, y: Tensor, alpha: float, w: Tensor) -> Tensor:
    counted = y >= 0
    row = modulated(x).gather(1, y.clamp(min=0)[:, None])[:, 0] * w[y.clamp(min=0)]
    return alpha * (row * counted).sum() / len(x)


def mmcv_sigmoid(x: Tensor, y: Tensor, w: Tensor | None = None) -> Tensor:
    loss = binary_focal(x, F.one_hot(y, C + 1)[:, :C].float(), alpha=0.25)
    return (loss if w is None else w[y][:, None] * loss).sum() / len(x)


def first_class_apart(alpha: float) -> Tensor:
    return torch.tensor([1 - alpha] + [alpha] * (C - 1))


def z_and_smoothing(x: Tensor, y: Tensor, e: float, z: float) -> Tensor:
    lse = x.logsumexp(1)
    target = x.gather(1, y[:, None])[:, 0]
    return (1 - e) * (lse - target) + e * (lse - x.mean(1)) + z * lse**2


def apex_focal(x: Tensor, y: Tensor, n: Tensor, e: float = 0.0) -> Tensor:
    hard = F.one_hot(y.clamp(min=0), C) * (y >= 0)[:, None].float()
    soft = hard * (1 - e) + e / 2
    p = x.sigmoid()
    factor = torch.where(hard == 1, 0.25 * (1 - p) ** 2, 0.75 * p**2)
    loss = factor * F.binary_cross_entropy_with_logits(x, soft, reduction="none")
    return (loss * (y != -2)[:, None]).sum() / n


def apex_xentropy(x: Tensor, y: Tensor, e: float) -> Tensor:
    return z_and_smoothing(x, y, e, 0.0).masked_fill(y == 0, 0)


def one_hot_mean(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return (w * modulated(x) * F.one_hot(y, C)).mean()


THERE: dict[str, Callable[[dict], Tensor]] = {  # in the order of the guide's table
    "torchvision `sigmoid_focal_loss(x, t)`": lambda v: binary_focal(v["x"], v["t"], 0.25),
    'torchvision `sigmoid_focal_loss(x, t, -1, 3, "mean")`': lambda v: binary_focal(
        v["x"], v["t"], -1, 3
    ).mean(),
    "mmcv `softmax": lambda v: mmcv_softmax(v["x"], v["y"], 0.25, v["w"]),
    "mmcv `sigmoid": lambda v: mmcv_sigmoid(v["x"], v["y"], v["w"]),
    "MONAI `FocalLoss(to_onehot_y": lambda v: one_hot_mean(v["x"], v["y"], v["w"]),
    "MONAI `FocalLoss(alpha": lambda v: (v["w"] * binary_focal(v["x"], v["t"], 0.25)).mean(),
    "kornia": lambda v: one_hot_mean(v["x"], v["y"], first_class_apart(0.25)),
    "Liger `liger_cross": lambda v: z_and_smoothing(
        v["c"] * torch.tanh(v["x"] / v["c"]), v["y"], v["e"], v["z"]
    ).mean(),
    "Liger `liger_fused": lambda v: F.cross_entropy(
        F.linear(v["h"], v["W"], v["b"]), v["y"], v["w"]
    ),
    "flash-attn": lambda v: z_and_smoothing(v["s"] * v["x"], v["y"], v["e"], v["z"]),
    "apex `Softmax": lambda v: apex_xentropy(v["x"], v["y"], v["e"]),
    "apex `focal": lambda v: apex_focal(v["x"], v["y"], v["n"]),
}


def test_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(blocks) >= 8
    names: dict = {}
    for block in blocks:
        exec(block, names)
    torch.testing.assert_close(
        names["same"],
        ce.sigmoid_focal_loss(names["logits"], names["labels"], alpha=0.25, gamma=2.0),
    )
    torch.testing.assert_close(names["doubt"].sum(1), torch.ones(64))


def test_pictures_and_files_exist() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", GUIDE)
    assert {f"pictures/{path.name}" for path in (DOCS / "pictures").iterdir()} == set(pictures)
    for module in re.findall(r"python -m (examples\.\w+)", GUIDE):
        assert (DOCS.parent / f"{module.replace('.', '/')}.py").is_file(), module


@pytest.mark.parametrize("call", CALLS)
def test_call_gives_the_same_number(call: str) -> None:
    names = case()
    if call.startswith("`nn."):
        expected = eval(call.strip("`"), names)
    else:
        (formula,) = (THERE[start] for start in THERE if call.startswith(start))
        expected = formula(names)
    torch.testing.assert_close(eval(CALLS[call], names), expected)


def test_every_formula_is_in_the_table() -> None:
    assert len(CALLS) == len(THERE) + 4
    assert all(any(call.startswith(start) for call in CALLS) for start in THERE)


# What the guide says of ours.


def test_doubling_every_weight_changes_nothing() -> None:
    v = case()
    x, y, w = v["x"], v["y"], v["w"]
    torch.testing.assert_close(ce.cross_entropy(x, y, 2 * w), ce.cross_entropy(x, y, w))


@pytest.mark.parametrize(("gamma", "lowest"), [(0.0, 0.8), (2.0, 0.63)])
def test_focal_loss_asks_for_another_probability_than_the_datas(gamma, lowest) -> None:
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    logits = torch.stack([p, 1 - p], dim=1).log()
    data = torch.tensor([0.8, 0.2]).double().expand_as(logits)
    loss = ce.cross_entropy(logits, data, gamma=gamma, reduction="none")
    assert p[loss.argmin()].item() == pytest.approx(lowest)


# PyTorch.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pytorch_rounds_the_loss_of_16_bits(dtype: torch.dtype) -> None:
    v = case()
    x, t = v["x"].to(dtype), v["t"].to(dtype)
    assert F.cross_entropy(x, v["y"]).dtype == dtype
    assert F.binary_cross_entropy_with_logits(x, t).dtype == dtype
    assert ce.cross_entropy(x, v["y"]).dtype == F32
    assert ce.binary_cross_entropy_with_logits(x, t).dtype == F32


def test_pytorch_takes_fewer_targets() -> None:
    v = case()
    x, y, t = v["x"], v["y"], v["t"]
    with pytest.raises(RuntimeError):
        F.cross_entropy(x, y.int())
    assert ce.cross_entropy(x, y.int()) == ce.cross_entropy(x, y)
    for labels in (t.long(), t.bool()):
        with pytest.raises(RuntimeError):
            F.binary_cross_entropy_with_logits(x, labels)
        expected = ce.binary_cross_entropy_with_logits(x, t)
        assert ce.binary_cross_entropy_with_logits(x, labels) == expected


def test_log_softmax_before_the_loss_does_no_harm() -> None:
    v = case()
    expected = ce.cross_entropy(v["x"], v["y"], v["w"])
    torch.testing.assert_close(ce.cross_entropy(v["x"].log_softmax(1), v["y"], v["w"]), expected)


def test_negative_smoothing() -> None:
    v = case()
    assert F.cross_entropy(v["x"], v["y"], label_smoothing=-0.1) == F.cross_entropy(v["x"], v["y"])
    with pytest.raises(RuntimeError):
        ce.cross_entropy(v["x"], v["y"], label_smoothing=-0.1)


def test_means_of_pytorch() -> None:
    """Ignored rows do not count; probabilities are divided by rows, labels by elements."""
    v = case()
    x, y, w, q, t = (v[name] for name in "xywqt")
    y[3] = -100
    counted = y != -100
    rows = F.cross_entropy(x[counted], y[counted], w, reduction="none")
    torch.testing.assert_close(ce.cross_entropy(x, y, w), rows.sum() / w[y[counted]].sum())
    rows = -(w * q * x.log_softmax(1)).sum(1)
    torch.testing.assert_close(ce.cross_entropy(x, q, w), rows.sum() / N)
    elements = F.binary_cross_entropy_with_logits(x, t, w, reduction="none")
    torch.testing.assert_close(ce.binary_cross_entropy_with_logits(x, t, w), elements.mean())
    t[0] = -1
    torch.testing.assert_close(
        ce.binary_cross_entropy_with_logits(x, t, w, ignore_value=-1), elements[1:].mean()
    )


# torchvision.


@pytest.mark.parametrize("alpha", [0.25, -1])
def test_torchvision_soft_labels(alpha: float) -> None:
    v = case()
    torch.testing.assert_close(
        ce.sigmoid_focal_loss(v["x"], v["q"], alpha=alpha, reduction="none"),
        binary_focal(v["x"], v["q"], alpha),
    )


def test_torchvision_has_no_gradient_where_gamma_is_below_one() -> None:
    def grad(loss: Callable) -> Tensor:
        x = torch.tensor([30.0], requires_grad=True)
        return torch.autograd.grad(loss(x, torch.ones(1)).sum(), x)[0]

    assert grad(lambda x, t: binary_focal(x, t, 0.25, gamma=0.5)).isnan().all()
    assert grad(lambda x, t: ce.sigmoid_focal_loss(x, t, alpha=0.25, gamma=0.5)).isfinite().all()


# mmcv.


def test_mmcv_counts_ignored_rows() -> None:
    v = case()
    x, y, w = v["x"], v["y"], v["w"]
    y[3] = -1
    ours = ce.cross_entropy(x, y, w, gamma=2.0, ignore_index=-1, normalizer=len(x))
    torch.testing.assert_close(0.25 * ours, mmcv_softmax(x, y, 0.25, w))


def test_mmcv_background() -> None:
    v = case()
    x, y = v["x"], v["y"]
    y[3] = C
    t = F.one_hot(y, C + 1)[:, :C]
    ours = ce.sigmoid_focal_loss(x, t, alpha=0.25, reduction="sum") / len(x)
    torch.testing.assert_close(ours, mmcv_sigmoid(x, y))


def test_mmcv_loss_ends() -> None:
    x, y = torch.tensor([[0.0, 200.0]]), torch.tensor([0])
    smallest = torch.tensor(torch.finfo(F32).tiny)
    p = x.softmax(1)[:, 0]
    assert -torch.log(torch.maximum(p, smallest)).item() == pytest.approx(87.3, abs=0.05)
    assert ce.cross_entropy(x, y, gamma=2.0).item() == pytest.approx(200)


# MONAI and kornia.


def test_monai_and_kornia_of_images() -> None:
    """The mean is over elements, "sum" of MONAI over the mean of positions."""
    x, y = torch.randn(2, C, 4, 3), torch.randint(C, (2, 4, 3))
    loss = modulated(x) * F.one_hot(y, C).movedim(-1, 1)
    ours = ce.cross_entropy(x, y, gamma=2.0, reduction="none")
    torch.testing.assert_close(ours, loss.sum(1))
    torch.testing.assert_close(ce.cross_entropy(x, y, gamma=2.0, normalizer=x.numel()), loss.mean())
    torch.testing.assert_close(
        ce.cross_entropy(x, y, gamma=2.0, normalizer=4 * 3), loss.mean((2, 3)).sum()
    )


def test_kornia_counts_ignored_rows() -> None:
    v = case()
    x, y, w = v["x"], v["y"], v["w"] * first_class_apart(0.25)
    one_hot = F.one_hot(y, C).float()
    y[3], one_hot[3] = -100, 0
    torch.testing.assert_close(
        ce.cross_entropy(x, y, w, gamma=2.0, normalizer=x.numel()),
        (w * modulated(x) * one_hot).mean(),
    )


def test_monai_modulates_soft_labels_otherwise() -> None:
    def monai(x: Tensor, t: Tensor) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        return (loss * torch.sigmoid(-x * (2 * t - 1)) ** 2).mean()

    v = case()
    torch.testing.assert_close(ce.sigmoid_focal_loss(v["x"], v["t"]), monai(v["x"], v["t"]))
    assert not torch.isclose(ce.sigmoid_focal_loss(v["x"], v["q"]), monai(v["x"], v["q"]))


# Liger, flash-attn, apex.


def test_z_loss_with_weights_has_one_divisor_here_and_two_in_liger() -> None:
    v = case()
    x, y, w, z = (v[name] for name in "xywz")
    z_loss = z * x.logsumexp(1) ** 2
    plain = F.cross_entropy(x, y, w)
    liger = plain + z_loss.mean()
    ours = ce.cross_entropy(x, y, w, z_loss=z)
    torch.testing.assert_close(ours, plain + z_loss.sum() / w[y].sum())
    assert not torch.isclose(ours, liger)
    torch.testing.assert_close(
        plain + ce.cross_entropy(x, y, z_loss=z) - F.cross_entropy(x, y), liger
    )


def test_logits_in_place_are_asked_for_and_guarded() -> None:
    v = case()
    for inplace in (False, True):
        logits = v["x"].requires_grad_() * 1
        before = logits.detach().clone()
        loss = ce.cross_entropy(logits, v["y"], inplace=inplace)
        assert torch.equal(logits.detach(), before) is not inplace
        used_again = loss + logits.sum()
        if inplace:
            with pytest.raises(RuntimeError, match="consumed its logits"):
                used_again.backward()
        else:
            used_again.backward()


def test_fused_linear_loss_is_float32() -> None:
    v = case()
    h, W = v["h"].bfloat16(), v["W"].bfloat16().requires_grad_()
    loss = ce.linear_cross_entropy(h, W, v["y"])
    loss.backward()
    assert (loss.dtype, W.grad.dtype) == (F32, torch.bfloat16)


def test_label_out_of_range_raises() -> None:
    v = case()
    v["y"][0] = C
    with pytest.raises(IndexError):
        ce.cross_entropy(v["x"], v["y"])


def test_apex_ignores_rows_and_knows_rows_without_a_class() -> None:
    v = case()
    x, y, n = v["x"], v["y"], v["n"]
    y[3], y[4] = -1, -2
    t = F.one_hot(y.clamp(min=0), C) * (y >= 0)[:, None]
    t[y == -2] = -2
    ours = ce.sigmoid_focal_loss(x, t, alpha=0.25, ignore_value=-2, reduction="sum") / n
    torch.testing.assert_close(ours, apex_focal(x, y, n))


def test_apex_smooths_the_logarithm_only() -> None:
    v = case()
    x, y, n, e = (v[name] for name in "xyne")
    soft = F.one_hot(y, C) * (1 - e) + e / 2
    ours = ce.sigmoid_focal_loss(x, soft, alpha=0.25, reduction="sum") / n
    torch.testing.assert_close(ours, binary_focal(x, soft, 0.25).sum() / n)
    assert not torch.isclose(ours, apex_focal(x, y, n, e), rtol=1e-3)
