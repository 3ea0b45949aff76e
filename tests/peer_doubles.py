"""Stand-ins for the packages of other kernels, which need a GPU: their signatures and documented
meaning in plain PyTorch, so that what the benchmark passes to them can be checked against float64.
"""

import sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from torchce_cuda import reference


def losses(logits, target, weight=None, **options):
    """One for each row."""
    return reference.cross_entropy(logits, target, weight, reduction="none", **options)


def mean(logits, target, weight=None, **options):
    return reference.cross_entropy(logits, target, weight, reduction="mean", **options)


class Liger:
    @staticmethod
    def apply(
        _input,
        target,
        weight,
        ignore_index=-100,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="mean",
        softcap=None,
        return_z_loss=False,
        /,
    ):
        assert (ignore_index, reduction, return_z_loss) == (-100, "mean", False)
        options = {"label_smoothing": label_smoothing, "z_loss": lse_square_scale}
        return mean(_input, target, weight, logit_softcap=softcap, **options), None, None, None


def quack(
    x,
    target,
    lse_partial=None,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    inplace_backward=False,
):
    assert lse_partial is None
    return F.cross_entropy(x, target, weight, reduction=reduction)


def flash_attn(
    logits,
    labels,
    precomputed_lse=None,
    label_smoothing=0.0,
    logit_scale=1.0,
    lse_square_scale=0.0,
    ignore_index=-100,
    inplace_backward=False,
    process_group=None,
):
    options = {"label_smoothing": label_smoothing, "z_loss": lse_square_scale}
    return losses(logits, labels, logit_scale=logit_scale, **options), None


def fla(
    logits,
    target,
    label_smoothing=0.0,
    logit_scale=1.0,
    lse_square_scale=0.0,
    logit_softcapping=None,
    ignore_index=-100,
    inplace_backward=False,
    process_group=None,
):
    options = {"label_smoothing": label_smoothing, "z_loss": lse_square_scale}
    return losses(logits, target, logit_softcap=logit_softcapping, **options), None


def flag_gems(inp, target, weight=None, reduction="mean", ignore_index=-100, label_smoothing=0.0):
    return F.cross_entropy(
        inp, target, weight, reduction=reduction, label_smoothing=label_smoothing
    )


class Apex:
    @staticmethod
    def apply(logits, labels, smoothing=0.0, padding_idx=0, half_to_float=False, /):
        kept = labels != padding_idx
        return losses(logits, labels, label_smoothing=smoothing) * kept


def transformer_engine(
    inp, target, label_smoothing=0.0, reduce_loss=False, process_group=None, ignore_idx=-100, /
):
    batch, rows, _ = inp.shape
    assert target.shape == (batch, rows)
    of_rows = losses(inp.flatten(0, 1), target.flatten(), label_smoothing=label_smoothing)
    return of_rows.mean() if reduce_loss else of_rows


def mmcv_softmax(input, target, gamma=2.0, alpha=0.25, weight=None, reduction="mean", /):
    """Its mean divides by the rows, whatever they weigh."""
    total = alpha * losses(input, target, weight, gamma=gamma).sum()
    return total / len(input) if reduction == "mean" else total


def mmcv_sigmoid(input, target, gamma=2.0, alpha=0.25, weight=None, reduction="mean", /):
    """Its mean divides by the rows; the number of classes as target is the background."""
    total = _sigmoid_focal(input, target, alpha, gamma)
    return total / len(input) if reduction == "mean" else total


def apex_focal(
    cls_output,
    cls_targets_at_level,
    num_positive_sum,
    num_real_classes,
    alpha,
    gamma,
    label_smoothing=0.0,
):
    assert num_real_classes == cls_output.shape[1]
    assert (num_positive_sum.dtype, num_positive_sum.numel()) == (torch.float32, 1)
    return _sigmoid_focal(cls_output, cls_targets_at_level, alpha, gamma) / num_positive_sum


def _sigmoid_focal(logits, index, alpha, gamma):
    labels = F.one_hot(index, logits.shape[1] + 1)[:, :-1]
    return reference.sigmoid_focal_loss(
        logits, labels.to(logits), alpha=alpha, gamma=gamma, reduction="sum"
    )


def torchvision(inputs, targets, alpha=0.25, gamma=2, reduction="none"):
    return reference.sigmoid_focal_loss(
        inputs, targets, alpha=alpha, gamma=gamma, reduction=reduction
    )


def linear(hidden, head, target):
    return F.cross_entropy(F.linear(hidden, head), target)


def cut(
    e,
    c,
    targets,
    bias=None,
    ignore_index=-100,
    softcap=None,
    reduction="mean",
    shift=False,
    filter_eps="auto",
    impl="cce",
):
    """What does not pass its filter has no gradient."""
    assert impl in ("cce", "cce_kahan_full_c", "torch_compile")
    logits = F.linear(e, c)
    if impl == "cce" and filter_eps is not None:
        logits.register_hook(lambda gradient: gradient * (gradient.abs() > 1e-3))
    return F.cross_entropy(logits, targets)


class LigerLinear:
    @staticmethod
    def apply(_input, weight, target, bias=None, /):
        return linear(_input, weight, target), None, None, None


def liger_linear(input, weight, target, bias=None, ce_weight=None, accum_dtype=None):
    return linear(input, weight, target)


def liger_linear_sm90(_input, weight, target, ignore_index=-100, reduction="mean"):
    return linear(_input, weight, target)


def quack_linear(x, weight, target, chunk_size=4096, ignore_index=-100, reduction="mean"):
    return linear(x, weight, target)


def fla_linear(x, target, weight, bias=None, ignore_index=-100):
    return linear(x, weight, target)


DOUBLES = {
    "liger_kernel.ops.cross_entropy.LigerCrossEntropyFunction": Liger,
    "liger_kernel.ops.cutedsl.ops.cross_entropy.LigerCrossEntropyFunction": Liger,
    "liger_kernel.ops.cutile.ops.cross_entropy.LigerCrossEntropyFunction": Liger,
    "quack.cross_entropy.cross_entropy": quack,
    "flash_attn.ops.triton.cross_entropy.cross_entropy_loss": flash_attn,
    "fla.modules.fused_cross_entropy.cross_entropy_loss": fla,
    "flag_gems.fused.cross_entropy_loss.cross_entropy_loss": flag_gems,
    "apex.contrib.xentropy.SoftmaxCrossEntropyLoss": Apex,
    "transformer_engine.pytorch.cross_entropy.parallel_cross_entropy": transformer_engine,
    "mmcv.ops.softmax_focal_loss": mmcv_softmax,
    "mmcv.ops.sigmoid_focal_loss": mmcv_sigmoid,
    "apex.contrib.focal_loss.focal_loss.focal_loss": apex_focal,
    "torchvision.ops.sigmoid_focal_loss": torchvision,
    "liger_kernel.transformers.functional.liger_fused_linear_cross_entropy": liger_linear,
    "liger_kernel.ops.cutedsl.ops.fused_linear_cross_entropy_sm90"
    ".liger_fused_linear_cross_entropy_sm90": liger_linear_sm90,
    "liger_kernel.ops.cutedsl.ops.fused_linear_cross_entropy"
    ".LigerFusedLinearCrossEntropyFunction": LigerLinear,
    "liger_kernel.ops.cutile.ops.fused_linear_cross_entropy"
    ".LigerFusedLinearCrossEntropyFunction": LigerLinear,
    "cut_cross_entropy.linear_cross_entropy": cut,
    "cut_cross_entropy.cce_utils.CCEPresets": None,
    "quack.linear_cross_entropy.chunked_linear_cross_entropy": quack_linear,
    "fla.modules.fused_linear_cross_entropy.fused_linear_cross_entropy_loss": fla_linear,
}


def install(monkeypatch, capability=(9, 0)):
    """Make them what is imported, and have a GPU of this capability."""
    modules = {}
    for name, double in DOUBLES.items():
        path, _, attribute = name.rpartition(".")
        parents = path.split(".")
        for depth in range(1, len(parents) + 1):
            modules.setdefault(".".join(parents[:depth]), SimpleNamespace())
        setattr(modules[path], attribute, double)
    for path, module in modules.items():
        monkeypatch.setitem(sys.modules, path, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
