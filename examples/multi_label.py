"""Labels that do not exclude each other, many of them rare: sigmoid focal loss or cross entropy?

The data are docstrings of installed libraries: from the prose that says what a function is for, a
small network guesses the names of the parameters that the docstring documents. `random_state` is
on hundreds of them, most names are on a few dozen, and any number of names can be right at once.

`python -m examples.multi_label` prints average precision and F1 of frequent and of rare labels,
and writes them to `out/multi_label.md` and, label by label, `out/multi_label.png`.
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score, f1_score
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import torchce_cuda as ce
from demo import corpus
from demo.plots import plt
from demo.table import align

OUT = Path("out")
LIBRARIES = (*corpus.LIBRARIES, "matplotlib", "networkx")  # torch brings the last one
LEAST = 20  # docstrings that a name must be on to be a label
FREQUENT = 100
WORDS = 64  # of a docstring's prose, the first ones
BUCKETS = 4096  # that words are hashed into; 0 pads
WIDTH = 256
SEEDS = 3
EPOCHS = 20
PAUSE = 4
BATCH = 256
TICKS = (20, 50, 100, 200, 500)
THRESHOLDS = np.linspace(0.05, 0.95, 19)

HEADING = re.compile(r"^(\w[\w ]*)\n-{3,}$", re.MULTILINE)  # numpydoc: a line and its underline
PARAMETER = re.compile(r"^(\S.*?) : ", re.MULTILINE)  # "names : type" where a line begins

LOSSES: dict[str, Callable[[Tensor], nn.Module]] = {  # of the training labels
    "cross entropy": lambda labels: ce.BCEWithLogitsLoss(),
    "with pos_weight": lambda labels: ce.BCEWithLogitsLoss(pos_weight=rarity(labels)),
    "focal": lambda labels: ce.SigmoidFocalLoss(gamma=2.0),
    "focal, alpha 0.25": lambda labels: ce.SigmoidFocalLoss(alpha=0.25, gamma=2.0),
}


@dataclass(frozen=True)
class Dataset:
    names: list[str]  # [labels], the most frequent first
    inputs: Tensor  # [docstrings, WORDS], buckets
    labels: Tensor  # [docstrings, labels], 0 or 1


@dataclass(frozen=True)
class Scores:
    average_precision: np.ndarray  # [labels]
    f1: np.ndarray  # [labels]
    threshold: float


def main() -> None:
    torch.set_num_threads(1)  # the steps are too small to share
    OUT.mkdir(exist_ok=True)
    data = make_dataset(read_docstrings(), LEAST)
    count = data.labels.sum(dim=0).numpy()
    print(
        f"{len(data.inputs)} docstrings, {len(data.names)} labels, "
        f"{(count >= FREQUENT).sum()} of them on {FREQUENT} docstrings or more; "
        f"{100 * data.labels.mean():.1f} % of all labels are 1"
    )
    scores = {name: [] for name in LOSSES}
    jobs = [(name, seed) for seed in range(SEEDS) for name in LOSSES]
    for name, seed in tqdm(jobs, "multi-label", unit="run"):
        scores[name].append(train_and_test(data, LOSSES[name], seed, EPOCHS))
    report = score_table(scores, count >= FREQUENT)
    (OUT / "multi_label.md").write_text(report + "\n")
    plot(scores, count, OUT / "multi_label.png")
    print(f"\n{report}")


def read_docstrings() -> Iterator[tuple[str, set[str]]]:
    """What a docstring says before its first heading, and the names it documents."""
    seen = set()  # the same prose twice could be in training and in the test
    for library in tqdm(LIBRARIES, "reading docstrings", unit="library"):
        root = corpus.library_root(library)
        for path in sorted(root.rglob("*.py")):
            if corpus.NOT_PROSE.isdisjoint(path.relative_to(root).parts):
                for docstring in corpus.docstrings(path.read_bytes()):
                    prose, names = split_docstring(docstring)
                    if names and prose not in seen:
                        seen.add(prose)
                        yield prose, names


def split_docstring(docstring: str) -> tuple[str, set[str]]:
    prose, *rest = HEADING.split(docstring)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    groups = PARAMETER.findall(sections.get("Parameters", ""))
    return prose, {name.strip(" *") for group in groups for name in group.split(",")}


def make_dataset(documents: Iterator[tuple[str, set[str]]], least: int) -> Dataset:
    proses, names_of_each = zip(*documents, strict=True)
    counts = Counter(name for names in names_of_each for name in sorted(names))
    names = [name for name, count in counts.most_common() if count >= least]
    inputs = torch.tensor([hashed_words(prose) for prose in proses])
    labels = torch.tensor([[name in each for name in names] for each in names_of_each]).float()
    return Dataset(names, inputs, labels)


def hashed_words(prose: str) -> list[int]:
    words = re.findall(r"\w+", prose.lower())[:WORDS]
    buckets = [1 + zlib.crc32(word.encode()) % (BUCKETS - 1) for word in words]
    return buckets + [0] * (WORDS - len(buckets))


def rarity(labels: Tensor) -> Tensor:
    """How many times more often a label is 0 than 1, tempered, so that a few 1s do not rule."""
    ones = labels.sum(dim=0).clamp(min=1)
    return ((len(labels) - ones) / ones).sqrt()


def train_and_test(
    data: Dataset, make_loss: Callable[[Tensor], nn.Module], seed: int, epochs: int
) -> Scores:
    rest, test = train_test_split(range(len(data.inputs)), test_size=0.25, random_state=seed)
    training, validation = train_test_split(rest, test_size=0.2, random_state=seed)
    labels = data.labels[training]
    truth = data.labels.numpy().astype(int)
    # Each loss has its own pace, so each stops where unseen docstrings are best understood.
    probability = max(
        train(data, training, make_loss(labels), seed, epochs),
        key=lambda p: np.nanmean(average_precision_per_label(truth[validation], p[validation])),
    )
    # Where F1 is best is below 1/2, and elsewhere for each loss.
    threshold = max(
        THRESHOLDS,
        key=lambda at: f1_per_label(truth[validation], probability[validation] > at).mean(),
    )
    return Scores(
        average_precision_per_label(truth[test], probability[test]),
        f1_per_label(truth[test], probability[test] > threshold),
        threshold,
    )


def train(
    data: Dataset, rows: list[int], loss: nn.Module, seed: int, epochs: int
) -> Iterator[np.ndarray]:
    """The probability of every label of every docstring, each time after `PAUSE` epochs."""
    inputs, labels = data.inputs[rows], data.labels[rows]
    torch.manual_seed(seed)
    words = nn.EmbeddingBag(BUCKETS, WIDTH, mode="sum", padding_idx=0)
    output = nn.Linear(WIDTH, labels.shape[1])
    model = nn.Sequential(words, nn.ReLU(), output)
    nn.init.normal_(words.weight, std=0.02)
    # Begins with what is usual, so that the many 0s do not shake the first steps (Lin et al. 2017).
    nn.init.constant_(output.bias, torch.logit(labels.mean()).item())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for epoch in range(epochs):
        for batch in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            loss(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
        if (epoch + 1) % PAUSE == 0:
            with torch.no_grad():
                yield torch.sigmoid(model(data.inputs)).numpy()


def average_precision_per_label(truth: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """NaN for a label that no docstring of the test has."""
    return np.array(
        [
            average_precision_score(is_one, score) if is_one.any() else np.nan
            for is_one, score in zip(truth.T, probability.T, strict=True)
        ]
    )


def f1_per_label(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return f1_score(truth, predicted, average=None, zero_division=0)


def score_table(scores: dict[str, list[Scores]], frequent: np.ndarray) -> str:
    def row(title: str, value: Callable[[Scores], float]) -> list[str]:
        runs = [[value(each) for each in of_loss] for of_loss in scores.values()]
        return [title, *(f"{np.mean(run):.3f} ± {np.std(run):.3f}" for run in runs)]

    return align(
        [
            ["mean ± deviation of the runs", *scores],
            row("average precision, frequent", lambda s: np.nanmean(s.average_precision[frequent])),
            row("average precision, rare", lambda s: np.nanmean(s.average_precision[~frequent])),
            row("F1, frequent", lambda s: s.f1[frequent].mean()),
            row("F1, rare", lambda s: s.f1[~frequent].mean()),
            row("threshold of F1", lambda s: s.threshold),
        ]
    )


def plot(scores: dict[str, list[Scores]], count: np.ndarray, path: Path) -> None:
    precision = {
        name: np.nanmean([each.average_precision for each in of_loss], axis=0)
        for name, of_loss in scores.items()
    }
    first, *others = precision
    figure, grid = plt.subplots(
        1, len(others), figsize=(4 * len(others), 3.6), sharey=True, squeeze=False
    )
    for axes, other in zip(grid[0], others, strict=True):
        axes.axhline(0, color="black", linewidth=0.8)
        axes.axvline(FREQUENT, color="grey", linestyle=":")
        axes.scatter(count, precision[other] - precision[first], s=12, alpha=0.6)
        axes.set(title=other, xlabel="docstrings with the label", xscale="log")
        axes.set_xticks(TICKS, map(str, TICKS))
        axes.minorticks_off()
    grid[0, 0].set_ylabel(f"average precision\nover that of {first}")
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
