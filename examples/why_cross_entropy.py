"""Draws what the losses and their options do: each loss, and the gradient that training sees.

`python -m examples.why_cross_entropy` writes the pictures of `docs/guide.md` to `docs/pictures/`.
Every curve but the squared error is a call of `torchce_cuda`, every gradient is autograd's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import torchce_cuda as ce
from demo.plots import plt

PICTURES = Path("docs/pictures")
CLASSES = 10
PROBABILITY = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)  # of the target
LOGIT = torch.linspace(-6, 6, 241, dtype=torch.float64)

Curve = tuple[Tensor, Tensor]  # the loss of every point, and its derivative by the target's logit


def main(folder: Path = PICTURES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures().items():
        draw(picture, folder / f"{name}.png")


def of_probability(loss: Callable[[Tensor, Tensor], Tensor]) -> Curve:
    """The target's probability is given, the other classes share the rest alike."""
    rest = ((1 - PROBABILITY) / (CLASSES - 1)).log().unsqueeze(1).expand(-1, CLASSES - 1)
    logits = torch.cat([PROBABILITY.log().unsqueeze(1), rest], dim=1).requires_grad_()
    target = torch.zeros(len(logits), dtype=torch.int64)
    values = loss(logits, target)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    return values.detach(), gradient[:, 0]


def cross_entropy_of_probability(**options) -> Curve:
    return of_probability(
        lambda logits, target: ce.cross_entropy(logits, target, reduction="none", **options)
    )


def of_logit(loss: Callable[[Tensor], Tensor]) -> Curve:
    logit = LOGIT.clone().requires_grad_()
    values = loss(logit)
    (gradient,) = torch.autograd.grad(values.sum(), logit)
    return values.detach(), gradient


def squared_error(logits: Tensor, target: Tensor) -> Tensor:
    """(1 - p)^2: the obvious alternative."""
    return (1 - logits.softmax(dim=1)[:, 0]).square()


def nll() -> dict[str, Curve]:
    return {
        "cross entropy": cross_entropy_of_probability(),
        "squared error": of_probability(squared_error),
    }


def gamma() -> dict[str, Curve]:
    return {f"γ = {g:g}": cross_entropy_of_probability(gamma=g) for g in (0.0, 0.5, 1.0, 2.0, 5.0)}


def smoothing() -> dict[str, Curve]:
    return {
        f"ε = {e:g}": cross_entropy_of_probability(label_smoothing=e) for e in (0.0, 0.1, 0.2, 0.4)
    }


def weight() -> dict[str, Curve]:
    """Two classes, logits (z, 0), target 0."""

    def loss(logit: Tensor, factor: float) -> Tensor:
        logits = torch.stack([logit, torch.zeros_like(logit)], dim=1)
        target = torch.zeros(len(logit), dtype=torch.int64)
        class_weight = torch.tensor([factor, 1.0], dtype=logit.dtype)
        return ce.cross_entropy(logits, target, class_weight, reduction="none")

    return {f"w = {w:g}": of_logit(lambda logit, w=w: loss(logit, w)) for w in (0.5, 1.0, 2.0, 4.0)}


def alpha() -> dict[str, Curve]:
    """A label that is 1 and one that is 0, each at three balances."""

    def loss(logit: Tensor, label: float, balance: float) -> Tensor:
        target = torch.full_like(logit, label)
        return ce.sigmoid_focal_loss(logit, target, alpha=balance, gamma=2.0, reduction="none")

    return {
        f"label {label:g}, α = {a:g}": of_logit(lambda z, label=label, a=a: loss(z, label, a))
        for label in (1.0, 0.0)
        for a in (0.25, 0.5, 0.75)
    }


def z_loss() -> dict[str, Curve]:
    """All logits of a row are equal, and move together: softmax does not notice."""

    def loss(shift: Tensor, factor: float) -> Tensor:
        logits = shift.unsqueeze(1).expand(-1, CLASSES)
        target = torch.zeros(len(shift), dtype=torch.int64)
        return ce.cross_entropy(logits, target, z_loss=factor, reduction="none")

    return {f"z_loss = {z:g}": of_logit(lambda shift, z=z: loss(shift, z)) for z in (0, 1e-2, 3e-2)}


@dataclass(frozen=True)
class Picture:
    curves: dict[str, Curve]
    at: Tensor
    xlabel: str
    derivative_by: str = "the target's logit"
    highest: float | None = None  # loss that is shown


def pictures() -> dict[str, Picture]:
    target = "probability of the target"
    return {
        "nll": Picture(nll(), PROBABILITY, target, highest=5),
        "gamma": Picture(gamma(), PROBABILITY, target, highest=5),
        "smoothing": Picture(smoothing(), PROBABILITY, target, highest=5),
        "weight": Picture(weight(), LOGIT, "logit of the target - logit of the other class"),
        "alpha": Picture(alpha(), LOGIT, "logit of the label", "the logit"),
        "z_loss": Picture(z_loss(), LOGIT, "every logit of the row", "every logit"),
    }


def draw(picture: Picture, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
    for name, (loss, gradient) in picture.curves.items():
        (line,) = left.plot(picture.at, loss, label=name)
        right.plot(picture.at, gradient)
        lowest = loss.argmin()
        if loss[lowest] < min(loss[0], loss[-1]) - 1e-6:  # a floor, where training comes to rest
            left.plot(picture.at[lowest], loss[lowest], "o", color=line.get_color())
    right.axhline(0, color="black", linewidth=0.8)
    left.set(xlabel=picture.xlabel, ylabel="loss", ylim=(0, picture.highest))
    right.set(xlabel=picture.xlabel, ylabel=f"its derivative by {picture.derivative_by}")
    left.legend(fontsize="small")
    # Without the name of the program, so that equal pictures are equal files.
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
