"""The specification of the losses in plain PyTorch operations.

Cross entropy: with ``z = softcap(logit_scale * input)``, ``p = softmax(z)``,
``lse = logsumexp(z)``, class weights ``w`` and the target distribution ``t`` after smoothing, the
loss of one row is

    sum_j t_j w_j (1 - p_j)^gamma (-log p_j)  +  z_loss * lse^2

Sigmoid losses: with ``p = sigmoid(input)``, target ``t``, ``u = t (1 - p) + (1 - t) p`` and
``a = alpha t + (1 - alpha) (1 - t)``, the loss of one element is

    a w u^gamma (pos_weight t (-log p) + (1 - t) (-log(1 - p)))

In float64 these are the truth that the tests measure the kernels against. They are differentiable
to any order and their control flow never depends on data, so ``torch.func`` transforms and double
backward run them as well.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Cross entropy with focal modulation, z-loss, logit scale and soft cap, of valid arguments.

    Shapes: ``input`` (C), (N, C) or (N, C, d1, ..., dk), any floating dtype; ``target`` without the
    C for class indices (int64, int32, uint8), with it for class probabilities (floating);
    ``weight`` (C). Returns a 0-d tensor, or one loss per row for ``reduction="none"``: float64 if
    ``input`` or the probabilities are float64, else float32.
    """
    dtype = torch.float64 if torch.float64 in (input.dtype, target.dtype) else torch.float32
    class_dim = min(input.dim() - 1, 1)
    logits = input.to(dtype).movedim(class_dim, -1)
    num_classes = logits.shape[-1]
    classes = torch.arange(num_classes, device=input.device)
    weight = logits.new_ones(num_classes) if weight is None else weight.to(dtype)

    if target.is_floating_point():
        probability = target.to(dtype).movedim(class_dim, -1)
        if label_smoothing > 0:
            probability = (1 - label_smoothing) * probability + label_smoothing / num_classes
        z = _scale_and_cap(logits, logit_scale, logit_softcap)
        log_p, log_not_p, lse = _softmax(z, exact=classes == z.argmax(-1, keepdim=True))
        cost = _modulate(log_p, log_not_p, gamma)
        # A class masked by -inf has an infinite cost, and none where its factor is 0.
        loss = _unless_impossible(probability * weight, cost, log_p).sum(-1) + z_loss * lse.square()
        divisor = loss.numel()
    else:
        target = target.to(torch.int64)  # before comparing: 156 in uint8 would equal -100
        counted = target != ignore_index
        is_target = (classes == target.unsqueeze(-1)) & counted.unsqueeze(-1)
        # Whatever an ignored row holds, as zeros it brings no NaN into the gradient.
        z = _scale_and_cap(
            torch.where(counted.unsqueeze(-1), logits, 0.0), logit_scale, logit_softcap
        )
        log_p, log_not_p, lse = _softmax(z, exact=is_target)
        cost = _modulate(log_p, log_not_p, gamma)
        # Select, then multiply: the weights and costs of other classes may be inf or NaN.
        target_weight = torch.where(is_target, weight, 0.0).sum(-1)
        loss = target_weight * torch.where(is_target, cost, 0.0).sum(-1)
        if label_smoothing > 0:
            uniform_loss = _unless_impossible(weight, cost, log_p).sum(-1) / num_classes
            loss = (1 - label_smoothing) * loss + label_smoothing * uniform_loss
        loss = torch.where(counted, loss + z_loss * lse.square(), 0.0)
        divisor = target_weight.sum()

    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return (loss.sum() / (divisor if normalizer is None else normalizer)).to(dtype)


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    alpha: float | None = None,
    gamma: float = 2.0,
    pos_weight: Tensor | None = None,
    ignore_value: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross entropy with focal modulation, of valid arguments.

    Shapes: ``target`` as ``input``; ``weight`` and ``pos_weight`` are broadcast to it. Returns a
    0-d tensor, or one loss per element for ``reduction="none"``: float64 if ``input`` or ``target``
    is float64, else float32.
    """
    dtype = torch.float64 if torch.float64 in (input.dtype, target.dtype) else torch.float32
    counted = torch.ones_like(target, dtype=torch.bool)
    if ignore_value is not None:
        counted = target != ignore_value
    # Whatever an ignored element holds, as zeros it brings no NaN into the gradient.
    x = torch.where(counted, input.to(dtype), 0.0)
    t = torch.where(counted, target.to(dtype), 0.0)
    positive = t if pos_weight is None else pos_weight.to(dtype) * t
    negative = 1 - t
    loss = _unless_zero(positive, -F.logsigmoid(x)) + _unless_zero(negative, -F.logsigmoid(-x))
    if gamma > 0:
        wrong = t * torch.sigmoid(-x) + negative * torch.sigmoid(x)
        # The smallest number for 0: the power of 0 has no finite derivative where gamma < 1.
        log_wrong = torch.log(torch.where(wrong == 0, torch.finfo(dtype).tiny, wrong))
        factor = wrong.square() if gamma == 2 else torch.exp(gamma * log_wrong)
        loss = _unless_zero(factor, loss)
    if alpha is not None and alpha >= 0:
        loss = (alpha * t + (1 - alpha) * negative) * loss
    if weight is not None:
        loss = weight.to(dtype) * loss
    loss = torch.where(counted, loss, 0.0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / counted.sum()


def _unless_zero(factor: Tensor, value: Tensor) -> Tensor:
    """``factor * value``, where a factor of 0 wins over whatever the value is."""
    return factor * torch.where(factor == 0, 0.0, value)


def _unless_impossible(factor: Tensor, cost: Tensor, log_p: Tensor) -> Tensor:
    """``factor * cost``, where a class with factor 0 may be impossible: its derivative stays."""
    return factor * torch.where((factor == 0) & (log_p == -torch.inf), 0.0, cost)


def _scale_and_cap(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    z = scale * logits
    return z if cap is None else cap * torch.tanh(z / cap)


def _softmax(z: Tensor, exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``log p`` and ``log(1 - p)`` of every class and ``lse`` of every row.

    As ``p -> 1`` both ``lse - z`` and ``1 - p`` cancel. The odds of one class against all others
    do not: ``p = sigmoid(log_odds)`` and ``1 - p = sigmoid(-log_odds)``. ``exact`` marks the class
    of each row that is treated so, at most one; no other matters, since only one can have p > 1/2.
    """
    # Shifted so that rows far from 0 keep their digits, in the gradient as well; and a row without
    # a softmax (all -inf, or with +inf) becomes NaN as a whole, as in PyTorch.
    shift = torch.logsumexp(z, -1, keepdim=True).detach()
    z = z - shift
    lse = shift + torch.logsumexp(z, -1, keepdim=True)
    log_p = torch.log_softmax(z, -1)
    # At p = 1 to the last digit, log(1 - p) has no derivative; as the cost is 0, any value does.
    log_not_p = torch.log(-torch.expm1(torch.where(log_p < 0, log_p, -torch.inf)))
    # The lowest number and not -inf: logsumexp of nothing but -inf has a NaN gradient.
    others = torch.where(exact, torch.finfo(z.dtype).min, z).logsumexp(-1, keepdim=True)
    log_odds = torch.where(exact, z, 0.0).sum(-1, keepdim=True) - others
    return (
        torch.where(exact, F.logsigmoid(log_odds), log_p),
        torch.where(exact, F.logsigmoid(-log_odds), log_not_p),
        lse.squeeze(-1),
    )


def _modulate(log_p: Tensor, log_not_p: Tensor, gamma: float) -> Tensor:
    """``(1 - p)^gamma * (-log p)``, as an exponential whose derivatives are all finite."""
    if gamma == 0:
        return -log_p
    # p = 0 leaves before it is modulated: afterwards, 0 * inf stays in the gradient.
    possible = log_p > -torch.inf
    modulated = torch.exp(gamma * log_not_p) * -torch.where(possible, log_p, -1.0)
    return torch.where(possible, modulated, -log_p)
