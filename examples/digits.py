"""Which loss finds the rare digits? Trains a classifier with each, tests it on unseen images.

`python -m examples.digits` prints the recall of every digit, and writes it with the confusion
matrices to `out/digits_confusion.md` and `out/digits_confusion.png`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn
from tqdm import tqdm

import torchce_cuda as ce
from demo.digits import CLASSES, RARE, Split, imbalanced_split
from demo.plots import plt
from demo.table import align, digit_title

OUT = Path("out")
SEEDS = 10
STEPS = 100


def balanced(labels: Tensor) -> Tensor:
    return ce.class_weights(labels, CLASSES, method="balanced")


LOSSES: dict[str, Callable[[Tensor], nn.Module]] = {  # of the training labels
    "plain": lambda labels: ce.CrossEntropyLoss(),
    "weighted": lambda labels: ce.CrossEntropyLoss(balanced(labels)),
    "focal": lambda labels: ce.FocalLoss(gamma=2.0),
    "weighted focal": lambda labels: ce.FocalLoss(balanced(labels), gamma=2.0),
    "smoothed": lambda labels: ce.CrossEntropyLoss(label_smoothing=0.1),
}


def main() -> None:
    torch.set_num_threads(1)  # the digits are too small to share
    OUT.mkdir(exist_ok=True)
    confusion = confusion_of_each_loss(SEEDS)
    recall = recall_table(confusion)
    (OUT / "digits_confusion.md").write_text(f"{recall}\n\n{confusion_tables(confusion)}\n")
    plot(confusion, OUT / "digits_confusion.png")
    print(f"\n{recall}\n\nWho is taken for whom: {OUT}/digits_confusion.md and .png")


def confusion_of_each_loss(seeds: int) -> dict[str, np.ndarray]:
    """Of each loss: [true digit, predicted digit], test images of all seeds together."""
    confusion = {name: np.zeros((CLASSES, CLASSES), int) for name in LOSSES}
    for seed in tqdm(range(seeds), "digits", unit="split"):
        split = imbalanced_split(seed)
        for name, make_loss in LOSSES.items():
            model = train(split, make_loss(split.labels), seed)
            with torch.no_grad():
                predicted = model(split.test_images).argmax(dim=1)
            confusion[name] += confusion_matrix(split.test_labels, predicted, labels=range(CLASSES))
    return confusion


def train(split: Split, loss: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model(split.images), split.labels).backward()
        optimizer.step()
    return model


def recall_table(confusion: dict[str, np.ndarray]) -> str:
    rows = [["recall", *confusion]]
    recalls = [matrix.diagonal() / matrix.sum(axis=1) for matrix in confusion.values()]
    for digit in range(CLASSES):
        rows.append([digit_title(digit), *(f"{100 * each[digit]:.1f} %" for each in recalls)])
    for title, digits in (
        ("the rare ones", list(RARE)),
        ("the others", [digit for digit in range(CLASSES) if digit not in RARE]),
        ("all", list(range(CLASSES))),
    ):
        rows.append([title, *(f"{100 * each[digits].mean():.1f} %" for each in recalls)])
    return align(rows)


def confusion_tables(confusion: dict[str, np.ndarray]) -> str:
    digits = [str(digit) for digit in range(CLASSES)]
    return "\n\n".join(
        align(
            [
                [f"{name}: true, predicted", *digits],
                *([digit, *map(str, row)] for digit, row in zip(digits, matrix, strict=True)),
            ]
        )
        for name, matrix in confusion.items()
    )


def plot(confusion: dict[str, np.ndarray], path: Path) -> None:
    figure, axes = plt.subplots(1, len(confusion), figsize=(3 * len(confusion), 3.4), sharey=True)
    for each, (name, matrix) in zip(axes, confusion.items(), strict=True):
        errors = matrix / matrix.sum(axis=1, keepdims=True)
        np.fill_diagonal(errors, np.nan)  # the right answers would outshine the mistakes
        image = each.imshow(100 * errors, cmap="magma_r", vmin=0, vmax=30)
        each.set(title=name, xlabel="predicted", xticks=range(CLASSES), yticks=range(CLASSES))
    axes[0].set_ylabel("true digit")
    figure.colorbar(image, ax=axes, label="of the digit's images, %", extend="max")
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
