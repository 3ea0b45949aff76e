"""Handwritten digits, three of them made rare: plain, class-weighted and focal loss."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from tqdm import tqdm

import torchce_cuda

CLASSES = 10
RARE = (1, 3, 8)
RARE_IMAGES = 5  # each rare digit keeps in training; the others keep about 115
TEST_IMAGES = 60  # of every digit, rare or not
STEPS = 100
SEEDS = 10  # each with its own split and start: one alone says little with five images of a digit


@dataclass(frozen=True)
class Split:
    images: Tensor  # [rows, 64], 0 to 1
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def imbalanced_split(seed: int) -> Split:
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32) / 16
    random = np.random.default_rng(seed)
    train, test = [], []
    for digit in range(CLASSES):
        rows = random.permutation(np.flatnonzero(labels == digit))
        test.append(rows[:TEST_IMAGES])
        rest = rows[TEST_IMAGES:]
        train.append(rest[:RARE_IMAGES] if digit in RARE else rest)
    train, test = np.concatenate(train), np.concatenate(test)
    arrays = (images[train], labels[train], images[test], labels[test])
    return Split(*map(torch.from_numpy, arrays))


def balanced_weight(labels: Tensor) -> Tensor:
    """Every class weighs as much in the sum as every other, however few its images."""
    weight = compute_class_weight("balanced", classes=np.arange(CLASSES), y=labels.numpy())
    return torch.from_numpy(weight).float()


LOSSES: dict[str, Callable[[Tensor], nn.Module]] = {  # of the training labels
    "plain": lambda labels: torchce_cuda.CrossEntropyLoss(),
    "class-weighted": lambda labels: torchce_cuda.CrossEntropyLoss(weight=balanced_weight(labels)),
    "focal": lambda labels: torchce_cuda.FocalLoss(gamma=2.0),
}


def accuracy_per_class() -> dict[str, np.ndarray]:
    """Of each loss: [CLASSES], the mean over the seeds."""
    jobs = [(name, seed) for name in LOSSES for seed in range(SEEDS)]
    accuracy = {name: [] for name in LOSSES}
    for name, seed in (progress := tqdm(jobs, "digits", unit="run")):
        progress.set_postfix_str(name)
        accuracy[name].append(train(LOSSES[name], seed))
    return {name: np.mean(runs, axis=0) for name, runs in accuracy.items()}


def train(make_loss: Callable[[Tensor], nn.Module], seed: int) -> np.ndarray:
    split = imbalanced_split(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss = make_loss(split.labels)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model(split.images), split.labels).backward()
        optimizer.step()
    with torch.no_grad():
        right = model(split.test_images).argmax(dim=1) == split.test_labels
    return right.view(CLASSES, TEST_IMAGES).float().mean(dim=1).numpy()  # the test set is sorted
