"""`class_weights`: the formulas against scikit-learn and float64 by hand, every kind of labels.

Two processes of a gloo group run this file (`python tests/test_class_weights.py RANK STORE`).
"""

import json
import subprocess
import sys
import tracemalloc
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import torchce_cuda as ce
from torchce_cuda.weights import _sampled

METHODS = ["balanced", "inverse", "inverse_sqrt", "effective", "median_frequency"]
BY_METHOD = pytest.mark.parametrize("method", METHODS)
LABELS = [3, 0, 0, 1, 3, 3, 3, 1, 0, 3, 2]


def by_hand(images: np.ndarray, method: str, beta: float = 0.999) -> np.ndarray:
    """From masses per image and class (n, C), float64; every class occurs."""
    n = images.sum(0, dtype=np.float64)
    if method == "balanced":
        return n.sum() / (len(n) * n)
    if method == "median_frequency":
        where = [sum(image.sum() for image in images if image[c] > 0) for c in range(len(n))]
        return np.median(n / where) / (n / where)
    raw = {
        "inverse": lambda: 1 / n,
        "inverse_sqrt": lambda: 1 / np.sqrt(n),
        "effective": lambda: (1 - beta) / (1 - beta**n),
    }[method]()
    return raw * len(n) / raw.sum()


def histogram(labels, num_classes: int) -> np.ndarray:
    return np.array([[np.sum(np.asarray(labels) == c) for c in range(num_classes)]])


def assert_weights(received: Tensor, expected, rtol: float = 2e-7) -> None:
    assert received.dtype == torch.float32
    np.testing.assert_allclose(received.cpu().double().numpy(), expected, rtol=rtol)


def same(received: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(received, expected, rtol=0, atol=0)


# The formulas.


@pytest.mark.parametrize("size", [1, 2, 13, 100_000])
def test_balanced_is_that_of_scikit_learn(size: int) -> None:
    utils = pytest.importorskip("sklearn.utils.class_weight")
    labels = torch.cat([torch.arange(5), (torch.rand(size) ** 3 * 5).long()]).numpy()
    expected = utils.compute_class_weight("balanced", classes=np.arange(5), y=labels)
    assert_weights(ce.class_weights(labels), expected)


@BY_METHOD
def test_plain_labels(method: str) -> None:
    expected = by_hand(histogram(LABELS, 4), method)
    assert_weights(ce.class_weights(torch.tensor(LABELS), method=method), expected)


@BY_METHOD
@pytest.mark.parametrize("shape", [(2, 3), (7, 5, 4), (3, 2, 3, 4), (1, 1), (400, 60, 60)], ids=str)
def test_label_maps(method: str, shape: tuple[int, ...]) -> None:
    labels = torch.randint(6, shape)
    labels[labels == 5] = torch.randint(6, ())  # most maps lack a class
    labels[0] = labels[0] // 2
    _, labels = labels.unique(return_inverse=True)
    num_classes = int(labels.max()) + 1
    images = np.concatenate([histogram(image, num_classes) for image in labels])
    expected = by_hand(images, method)
    assert_weights(ce.class_weights(labels, method=method), expected)
    assert_weights(ce.class_weights(labels, num_classes, method=method), expected)
    ignored = torch.cat([labels, torch.full_like(labels[:1], -100)])
    assert_weights(ce.class_weights(ignored, method=method), expected)


@BY_METHOD
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2), (4, 3, 5, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_probabilities(method: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    labels = torch.randn(shape).softmax(1).to(dtype)
    labels[0, 1] = 0  # an image without the class
    images = labels.double().flatten(2).sum(2) if len(shape) > 2 else labels.double().sum(0)[None]
    assert_weights(ce.class_weights(labels, method=method), by_hand(images.numpy(), method))


@BY_METHOD
def test_one_hot_probabilities_are_class_indices(method: str) -> None:
    labels = torch.randint(5, (9, 4, 4))
    one_hot = F.one_hot(labels).movedim(-1, 1).float()
    same(ce.class_weights(one_hot, method=method), ce.class_weights(labels, method=method))


def test_median_frequency_of_the_paper() -> None:
    """Class 2 is frequent where it occurs: it is divided by the pixels of its own image alone."""
    labels = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [2, 2, 2, 0]])
    frequency = np.array([7 / 12, 2 / 8, 3 / 4])
    expected = (7 / 12) / frequency
    assert_weights(ce.class_weights(labels, method="median_frequency"), expected)
    even = torch.tensor([0, 0, 0, 1])  # the mean of the two in the middle
    assert_weights(ce.class_weights(even, method="median_frequency"), [2 / 3, 2])


@pytest.mark.parametrize("method", ["inverse", "inverse_sqrt", "effective"])
def test_normalisation(method: str) -> None:
    labels = torch.tensor(LABELS)
    assert ce.class_weights(labels, method=method).mean().item() == pytest.approx(1, rel=1e-6)
    with pytest.warns(UserWarning):
        more = ce.class_weights(labels, 9, method=method)
    same(more[:4], ce.class_weights(labels, method=method))


def test_balanced_has_mean_1_over_the_labels() -> None:
    labels = torch.tensor(LABELS)
    assert ce.class_weights(labels)[labels].mean().item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("beta", [0.0, 1e-300, 0.3, 0.9, 0.9999, 1 - 1e-9, 1 - 2**-53])
def test_effective_number_without_cancellation(beta: float) -> None:
    """Against its geometric sum 1 + beta + beta^2 + ..., which subtracts nothing."""
    counts = [1, 2, 50, 1000]
    labels = np.repeat(np.arange(4), counts)
    raw = np.array([1 / sum(beta**k for k in range(n)) for n in counts])
    expected = raw * 4 / raw.sum()
    assert_weights(ce.class_weights(labels, method="effective", beta=beta), expected)


# Kinds of labels.


class Items(Dataset):
    """Map-style; remembers what was loaded."""

    def __init__(self, items: list) -> None:
        self.items, self.loaded = items, []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        self.loaded.append(index)
        return self.items[index]


class Iterated:
    """An iterable that is nothing more."""

    def __init__(self, items) -> None:
        self.items = items

    def __iter__(self) -> Iterator:
        return iter(self.items)


class Stream(Iterated, IterableDataset):
    pass


class NoLen(Dataset):
    def __getitem__(self, index: int):
        return IMAGE, LABELS[index]


class ArrayLike:
    """As an image library's label map: nothing but the interface."""

    def __init__(self, array: np.ndarray) -> None:
        self.kept, self.__array_interface__ = array, array.__array_interface__


IMAGE = torch.randn(3, 2, 2)
READ_ONLY = np.array(LABELS)
READ_ONLY.flags.writeable = False
PAIRS = [(IMAGE, label) for label in LABELS]
PLAIN = {
    "list": LABELS,
    "tuple": tuple(LABELS),
    "range": range(4),
    "iterable": Iterated(LABELS),
    "bools and ints": [True, False, 2, np.int8(3), torch.tensor(3)],
    "numpy integers": list(np.array(LABELS, np.uint16)),
    "0-d tensors": list(torch.tensor(LABELS)),
    "array": np.array(LABELS),
    "big-endian array": np.array(LABELS, ">i4"),
    "read-only array": READ_ONLY,
    "reversed array": np.array(LABELS[::-1])[::-1],
    "strided tensor": torch.tensor(LABELS).repeat_interleave(3)[::3],
    "array interface": ArrayLike(np.array(LABELS)),
    "lists": [LABELS[:4], LABELS[4:]],
    "tensors": [torch.tensor(LABELS[:4]), torch.tensor(LABELS[4:])],
    "arrays": Iterated([np.array(LABELS[:4]), np.array(LABELS[4:])]),
    "dataset": Items(PAIRS),
    "dataset of labels": Items(LABELS),
    "dataset of 0-d tensors": Items([[IMAGE, torch.tensor(label)] for label in LABELS]),
    "dataset without length": NoLen(),
    "iterable dataset": Stream(PAIRS),
    "tensor dataset": TensorDataset(torch.randn(11, 2), torch.tensor(LABELS)),
    "subset": Subset(Items([*PAIRS, (IMAGE, 99)]), range(11)),
    "loader": DataLoader(Items(PAIRS), batch_size=3),
    "shuffling loader": DataLoader(Items(PAIRS), batch_size=4, shuffle=True),
    "loader of a stream": DataLoader(Stream(PAIRS), batch_size=3),
    "loader with a batch sampler": DataLoader(
        Items(PAIRS), batch_sampler=[range(5), range(5, 11)]
    ),
    "loader without batches": DataLoader(Items(PAIRS), batch_size=None),
    "loader of lists": DataLoader(
        Items(PAIRS), batch_size=3, collate_fn=lambda pairs: tuple(zip(*pairs, strict=True))
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLAIN)
def test_kinds_of_plain_labels(kind: str) -> None:
    labels = {"range": [0, 1, 2, 3], "bools and ints": [1, 0, 2, 3, 3]}.get(kind, LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns of arrays that it cannot write into
        same(ce.class_weights(PLAIN[kind]), ce.class_weights(torch.tensor(labels)))


@BY_METHOD
def test_kinds_of_label_maps(method: str) -> None:
    """Where a map ends decides median_frequency, so each kind has to tell."""
    labels = torch.randint(4, (6, 5, 3))
    labels[0], labels[1] = 0, 1
    pairs = [(IMAGE, label) for label in labels]
    expected = ce.class_weights(labels, method=method)
    for received in (
        ce.class_weights(labels.numpy(), method=method),
        ce.class_weights(list(labels), batched=False, method=method),
        ce.class_weights(labels.tolist(), batched=False, method=method),
        ce.class_weights(iter(labels.split(4)), batched=True, method=method),
        ce.class_weights(Items(pairs), method=method),
        ce.class_weights(Items([(0, label.tolist()) for label in labels]), method=method),
        ce.class_weights(Items([(0, ArrayLike(x.numpy())) for x in labels]), method=method),
        ce.class_weights(Stream(pairs), method=method),
        ce.class_weights(Stream([labels[:2], labels[2:]]), batched=True, method=method),
        ce.class_weights(TensorDataset(labels), method=method),
        ce.class_weights(DataLoader(Items(pairs), batch_size=4), method=method),
        ce.class_weights(
            DataLoader(Items(pairs), batch_size=4, collate_fn=lambda x: list(zip(*x, strict=True))),
            method=method,
        ),
    ):
        same(received, expected)


def test_label_maps_of_different_sizes() -> None:
    maps = [torch.randint(3, (2, 5)), torch.zeros(4, 4).long(), torch.randint(3, (1, 9))]
    expected = by_hand(np.concatenate([histogram(x, 3) for x in maps]), "median_frequency")
    pairs = [(IMAGE, label) for label in maps]
    loader = DataLoader(
        Items(pairs), batch_size=2, collate_fn=lambda x: tuple(zip(*x, strict=True))
    )
    for labels, batched in ((maps, False), (Items(pairs), None), (loader, None)):
        received = ce.class_weights(labels, method="median_frequency", batched=batched)
        assert_weights(received, expected)


@BY_METHOD
def test_kinds_of_probabilities(method: str) -> None:
    for shape in ((6, 3), (6, 3, 4)):
        labels = torch.randn(shape, dtype=torch.float64).softmax(1)
        expected = ce.class_weights(labels, method=method)
        pairs = [(IMAGE, label) for label in labels]
        for received in (
            ce.class_weights(labels.numpy(), method=method),
            ce.class_weights(labels.clone().requires_grad_(), method=method),
            ce.class_weights(list(labels), batched=False, method=method),
            ce.class_weights(labels.split(4), batched=True, method=method, label_of=lambda x: x),
            ce.class_weights(Items(pairs), method=method),
            ce.class_weights(DataLoader(Items(pairs), batch_size=4), method=method),
        ):
            assert not received.requires_grad
            torch.testing.assert_close(received, expected)
    if method != "median_frequency":  # (C) each, or (N, C): not a question of images
        rows = torch.randn(6, 3).softmax(1)
        torch.testing.assert_close(
            ce.class_weights(list(rows), method=method), ce.class_weights(rows, method=method)
        )


def test_images_and_plain_labels_of_one_stream() -> None:
    """All plain labels together are one image more; not every class is among them."""
    maps = torch.randint(3, (2, 4, 4))
    plain = torch.tensor([0, 1, 1])
    images = np.concatenate([histogram(x, 3) for x in (*maps, plain)])
    stream = [*maps, *plain.tolist()]
    received = ce.class_weights(stream, batched=False, method="median_frequency")
    assert_weights(received, by_hand(images, "median_frequency"))


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"],
)
def test_integer_dtypes(dtype: str) -> None:
    array = np.array([0, 1, 1, 0, 1]).astype(dtype)
    for labels in (array, torch.from_numpy(array), list(array), torch.from_numpy(array).view(5, 1)):
        assert_weights(ce.class_weights(labels), [5 / 4, 5 / 6])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64], ids=str)
def test_ignored_labels(dtype: torch.dtype) -> None:
    labels = torch.tensor([[0, 255, 1, 1], [255, 255, 255, 255]], dtype=dtype)
    for num_classes in (None, 2):
        assert_weights(ce.class_weights(labels, num_classes, ignore_index=255), [3 / 2, 3 / 4])
    assert_weights(ce.class_weights([0, 1, 1, -1], ignore_index=-1), [3 / 2, 3 / 4])
    with pytest.warns(UserWarning, match="get weight 1: 0$"):
        assert_weights(ce.class_weights([0, 1, 1, 2, 0, 0], ignore_index=0), [1, 0.75, 1.5])


def test_minus_100_is_no_156() -> None:
    labels = torch.tensor([156, 0, 156], dtype=torch.uint8)
    with pytest.warns(UserWarning):
        assert_weights(ce.class_weights(labels)[[0, 156]], [3 / 2, 3 / 4])


def test_0_d_label(device: torch.device) -> None:
    for labels in (torch.tensor(0, device=device), np.array(0), np.int64(0)):
        assert ce.class_weights(labels).tolist() == [1.0]


def test_device_of_the_weights(device: torch.device) -> None:
    labels = torch.tensor(LABELS, device=device)
    for method in METHODS:
        received = ce.class_weights(labels, method=method)
        assert received.device.type == device.type
        same(received.cpu(), ce.class_weights(LABELS, method=method))
        maps = torch.randint(4, (5, 6, 6), device=device)
        same(
            ce.class_weights(maps, method=method).cpu(),
            ce.class_weights(maps.cpu(), method=method),
        )


@pytest.mark.parametrize("kind", [list, iter, np.array])
@pytest.mark.parametrize("max_samples", [None, 20])
def test_the_default_device_is_of_no_account(kind, max_samples: int | None) -> None:
    labels = 2 * LABELS
    probabilities = torch.eye(4)[labels].tolist()

    def weights() -> list[Tensor]:
        kinds = (labels, probabilities)
        return [ce.class_weights(kind(each), max_samples=max_samples) for each in kinds]

    expected = weights()
    with torch.device("meta"):
        received = weights()
    for x, y in zip(received, expected, strict=True):
        same(x, y)


def test_many_pieces() -> None:
    """More labels than are counted at a time, and more classes than images are."""
    labels = (torch.rand(3_000_001) ** 2 * 7).long()
    expected = by_hand(np.bincount(labels.numpy())[None], "balanced")
    assert_weights(ce.class_weights(labels), expected)
    assert_weights(ce.class_weights(labels.numpy()), expected)
    few = labels[:200_000]
    same(ce.class_weights(iter(few.tolist())), ce.class_weights(few))
    maps = torch.arange(300_000).view(100, 3000)
    same(ce.class_weights(maps, method="median_frequency"), torch.ones(300_000))


def test_weights_fit_the_losses() -> None:
    weight = ce.class_weights(LABELS)
    logits, target = torch.randn(11, 4), torch.tensor(LABELS)
    loss = ce.cross_entropy(logits, target, weight)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target, weight))
    assert ce.FocalLoss(weight)(logits, target).isfinite()


# What of a dataset is read.


class Torchvision(Items):
    def __init__(self, targets, **more) -> None:
        super().__init__(PAIRS)
        self.targets = targets
        self.__dict__.update(more)


@pytest.mark.parametrize(
    "targets",
    [LABELS, tuple(LABELS), torch.tensor(LABELS), np.array(LABELS), list(np.array(LABELS))],
)
def test_targets_are_used_without_loading(targets) -> None:
    dataset = Torchvision(targets)
    same(ce.class_weights(dataset), ce.class_weights(LABELS))
    part = Subset(Subset(dataset, range(2, 11)), [0, 1, 5, 7, 8])  # 0, 1, 1, 3, 2
    same(ce.class_weights(part), ce.class_weights([0, 1, 1, 3, 2]))
    assert not dataset.loaded


@pytest.mark.parametrize(
    "dataset",
    [
        Torchvision([f"{label}.png" for label in LABELS]),
        Torchvision(LABELS[:-1]),
        Torchvision(None),
        Torchvision([5] * 11, target_transform=int),
    ],
    ids=["paths", "another length", "none", "transformed"],
)
def test_other_targets_are_not_used(dataset: Dataset) -> None:
    same(ce.class_weights(dataset), ce.class_weights(LABELS))
    assert dataset.loaded == list(range(11))


def test_label_of() -> None:
    items = [{"image": IMAGE, "label": label, "map": torch.tensor([label] * 4)} for label in LABELS]
    expected = ce.class_weights(LABELS)
    same(ce.class_weights(Items(items), label_of=lambda item: item["label"]), expected)
    same(ce.class_weights(Items(items), label_of=lambda item: item["map"]), expected)
    same(ce.class_weights(iter(items), label_of=lambda item: item["label"]), expected)
    loader = DataLoader(Items(items), batch_size=4)
    same(ce.class_weights(loader, label_of=lambda batch: batch["map"]), expected)
    first = Torchvision([0] * 11)
    first.items = [(label, IMAGE) for label in LABELS]
    same(ce.class_weights(first, label_of=lambda item: item[0]), expected)


# Memory.


class Alive:
    """Counts the tensors that it made and that are still alive, and the most at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._gone)
        return tensor

    def _gone(self) -> None:
        self.now -= 1


@pytest.mark.parametrize("max_samples", [None, 5])
def test_a_stream_is_not_held(max_samples: int | None) -> None:
    alive = Alive()

    def batches() -> Iterator[Tensor]:
        for _ in range(100):
            yield alive(torch.arange(12).view(2, 2, 3) % 3)

    ce.class_weights(batches(), batched=True, max_samples=max_samples)
    assert (alive.now, alive.most) == (0, 2)  # while the next one is made


def test_a_dataset_is_not_held() -> None:
    alive = Alive()

    class Made(Dataset):
        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int):
            if index == len(self):
                raise IndexError
            return alive(torch.zeros(3)), alive(torch.tensor([0, 1]))

    ce.class_weights(Made())
    assert (alive.now, alive.most) == (0, 4)
    ce.class_weights(DataLoader(Made(), batch_size=5))
    assert (alive.now, alive.most) == (0, 10)


def test_a_memory_mapped_array_is_read_in_pieces(tmp_path: Path) -> None:
    size = 20 << 20
    mapped = np.memmap(tmp_path / "labels", np.uint8, "w+", shape=(size // 1024, 1024))
    mapped[::2] = 1
    tracemalloc.start()
    ce.class_weights(np.memmap(tmp_path / "labels", np.uint8, "r", shape=mapped.shape))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 1 << 20 <= peak <= 3 << 20


# A part of the data.


SAMPLED: dict[str, Callable] = {
    "tensor": lambda: torch.arange(7),
    "array": lambda: np.arange(7),
    "list": lambda: list(range(7)),
    "dataset": lambda: Items([(IMAGE, label) for label in range(7)]),
    "targets": lambda: Subset(Torchvision(list(range(11))), range(7)),
    "generator": lambda: iter(range(7)),
    "batches": lambda: torch.arange(7).split(2),
    "maps": lambda: iter(torch.arange(7).view(7, 1, 1).expand(7, 2, 2).split(1)),
    "probabilities": lambda: iter(torch.eye(7).split(3)),
    "loader": lambda: DataLoader(Items(list(range(7))), batch_size=2),
    "stream": lambda: Stream([(IMAGE, label) for label in range(7)]),
}
BATCHED = {"batches", "maps", "probabilities"}


def taken(kind: str, max_samples: int, seed: int, labels=None) -> tuple[int, ...]:
    """Which of the labels 0 to 6, told by the warning that names the others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ce.class_weights(
            SAMPLED[kind]() if labels is None else labels,
            num_classes=7,
            max_samples=max_samples,
            seed=seed,
            batched=True if kind in BATCHED else None,
        )
    names = str(caught[0].message).split(": ")[1].split(", ") if caught else []
    return tuple(label for label in range(7) if str(label) not in names)


@pytest.mark.parametrize("kind", SAMPLED)
def test_every_sample_is_as_likely(kind: str) -> None:
    """Each of the 21 pairs of 7, in 420 draws; chi^2 with 20 degrees of freedom, 1 in 10^5."""
    draws = Counter(taken(kind, 2, seed) for seed in range(420))
    assert set(draws) <= set(combinations(range(7), 2))
    assert sum((draws[pair] - 20) ** 2 / 20 for pair in combinations(range(7), 2)) < 60


@pytest.mark.parametrize("kind", SAMPLED)
def test_sample_is_decided_by_the_seed(kind: str) -> None:
    first = [taken(kind, 3, seed) for seed in range(10)]
    torch.manual_seed(99)
    torch.rand(3)
    assert [taken(kind, 3, seed) for seed in range(10)] == first
    assert len(set(first)) > 5
    for enough in (7, 8, 10**12):
        assert taken(kind, enough, 0) == tuple(range(7))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint64])
def test_sample_of_a_stream_of_arrays(dtype: type) -> None:
    labels = np.array([0, 1] * 50).astype(dtype)
    stream = Iterated(np.split(labels, 50))
    same(ce.class_weights(stream, max_samples=100, batched=True), torch.ones(2))
    ce.class_weights(stream, 2, max_samples=20, batched=True)


def test_sample_of_a_stream_does_not_depend_on_batches() -> None:
    labels = torch.arange(7).repeat_interleave(50)
    draws = {taken("batches", 3, 5, labels.split(size)) for size in (1, 2, 15, 16, 17, 100, 350)}
    assert len(draws) == 1


def test_sample_of_a_long_stream() -> None:
    labels = (torch.rand(200_000) ** 2 * 3).long()
    exact = ce.class_weights(labels)
    for stream, batched in ((iter(labels.tolist()), None), (labels.split(999), True)):
        received = ce.class_weights(stream, max_samples=20_000, batched=batched)
        torch.testing.assert_close(received, exact, rtol=0.05, atol=0)
        assert not torch.equal(received, exact)


def test_all_parts_of_a_long_stream_are_as_likely() -> None:
    """Tenths of a stream, in 20 draws; chi^2 with 9 degrees of freedom, 1 in 10^5."""
    labels = torch.arange(10).repeat_interleave(1000)
    taken_of = torch.zeros(10)
    for seed in range(20):
        stream = iter(labels.split(50))
        weights = ce.class_weights(stream, max_samples=500, seed=seed, batched=True)
        taken_of += 500 / (10 * weights)
    assert taken_of.sum().item() == pytest.approx(10_000, rel=1e-4)
    assert ((taken_of - 1000) ** 2 / 1000).sum() < 40


def test_kept_samples_hold_nothing_else() -> None:
    for sample in _sampled(torch.randint(3, (64, 4, 4)).split(16), 8, 0):
        assert sample.untyped_storage().nbytes() == sample.nbytes


def test_sampled_dataset_loads_the_sample_alone() -> None:
    dataset = Items(PAIRS)
    ce.class_weights(dataset, 4, max_samples=9)
    assert len(set(dataset.loaded)) == len(dataset.loaded) == 9
    rows = torch.zeros(50, 4).long()
    rows[7] = 1
    with pytest.warns(UserWarning, match="1 of 2 classes"):
        ce.class_weights(rows, 2, max_samples=3)  # images, not pixels


def test_probabilities_of_a_loader_can_be_sampled() -> None:
    labels = torch.randn(50, 3).softmax(1)
    dataset = TensorDataset(torch.zeros(50, 1), labels)
    whole = ce.class_weights(DataLoader(dataset, batch_size=8), max_samples=50)
    torch.testing.assert_close(whole, ce.class_weights(labels))


# Classes that never occur, progress.


@BY_METHOD
def test_absent_classes_get_weight_1(method: str) -> None:
    labels = torch.tensor([[4, 1, 1], [1, 4, 1]])
    with pytest.warns(
        UserWarning, match="4 of 6 classes never occur.*weight 1: 0, 2, 3, 5$"
    ) as got:
        received = ce.class_weights(labels, 6, method=method)
    assert got[0].filename == __file__
    assert received[[0, 2, 3, 5]].tolist() == [1] * 4
    same(received[[1, 4]], ce.class_weights(labels // 4, method=method))


def test_many_absent_classes_are_not_all_named() -> None:
    with pytest.warns(
        UserWarning, match=r"999 of 1000 .*: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 989 more"
    ):
        ce.class_weights([999])


@BY_METHOD
def test_probabilities_near_0(method: str) -> None:
    tiny = torch.tensor([[5e-324, 1, 1e-40, 1e-300]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ce.class_weights(tiny, method=method).isfinite().all()


def test_progress(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("tqdm")
    for labels in (LABELS, iter(LABELS), Items(PAIRS), DataLoader(Items(PAIRS))):
        ce.class_weights(labels, progress=True)
        shown = capsys.readouterr().err
        assert "class_weights" in shown and "11" in shown
    for progress in (None, False):  # stderr is no terminal
        ce.class_weights(Items(PAIRS), progress=progress)
        assert not capsys.readouterr().err


def test_no_progress_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    same(ce.class_weights(iter(LABELS)), ce.class_weights(torch.tensor(LABELS)))
    with pytest.warns(UserWarning, match="tqdm is not installed") as got:
        ce.class_weights(LABELS, progress=True)
    assert got[0].filename == __file__


# Bad input.


SOFT = torch.rand(4, 3)
BAD = [
    (IndexError, r"label 4 .* in \[0, 4\), or ignore_index \(-100\)", [0, 4], {"num_classes": 4}),
    (IndexError, r"label -1 .* in \[0, 4\)", torch.tensor([[0], [-1]]), {"num_classes": 4}),
    (IndexError, "label -1 .* at least 0", [0, -1], {}),
    (IndexError, "label 255 ", np.array([255], np.uint8), {"num_classes": 9}),
    (IndexError, "label -100 ", [0, -100], {"ignore_index": 255}),
    (IndexError, "give num_classes", [0, 2**40], {}),
    (IndexError, r"label 18446744073709551515 ", np.array([2**64 - 101], np.uint64), {}),
    (IndexError, r"label 1267650600228229401496703205376 ", [0, 2**100], {}),
    (ValueError, "no label was counted", [], {}),
    (ValueError, "no label was counted", torch.empty(0, 3), {}),
    (ValueError, "no label was counted", np.array([]), {"num_classes": 3}),
    (ValueError, "no label was counted", [-100, -100], {}),
    (ValueError, "no label was counted", torch.zeros(4, 3), {}),
    (ValueError, "no label was counted", Iterated([]), {"max_samples": 3}),
    (ValueError, "of 3 classes, but there are 5", SOFT, {"num_classes": 5}),
    (ValueError, "of 2 classes, but there are 3", Iterated([SOFT, SOFT[:, :2]]), {"batched": True}),
    (ValueError, "classes, but there are 5", Iterated([np.array([4]), SOFT]), {"batched": True}),
    (IndexError, r"label 4 .* in \[0, 3\)", Iterated([SOFT, torch.tensor([4])]), {"batched": True}),
    (ValueError, "probability is -0.5", torch.tensor([[0.5, -0.5]]), {}),
    (ValueError, "probability is nan", torch.tensor([[0.5, float("nan")]]), {}),
    (ValueError, "probability is inf", torch.tensor([[0.5, float("inf")]]), {}),
    (TypeError, r"float32 and shape \(N\): class indices must be integers", torch.rand(3), {}),
    (TypeError, "float64 and shape", np.zeros(3), {}),
    (TypeError, "float32 and shape", [torch.rand(3)], {"batched": True, "max_samples": 2}),
    (TypeError, "a label is 1.5", [np.float64(1.5)], {}),
    (TypeError, "not float", [1.5], {}),
    (TypeError, "not str", ["cat"], {}),
    (TypeError, "not 'cat'", "cat", {}),
    (TypeError, "not NoneType", [None], {}),
    (TypeError, "not int", 3, {}),
    (TypeError, "not {0: 7}", {0: 7}, {}),
    (TypeError, "not {1", {1, 2}, {}),
    (TypeError, "complex64", torch.zeros(3, dtype=torch.complex64), {}),
    (TypeError, "class indices or probabilities", np.array(["cat"]), {}),
    (TypeError, "class indices or probabilities", [[0, 1], [[0], 1]], {}),
    (TypeError, r"is a tuple; label_of=lambda", PAIRS, {}),
    (TypeError, r"not dict; label_of", Items([{"label": 1}]), {}),
    (TypeError, r"not dict; label_of", DataLoader(Items([{"label": 1}])), {}),
    (TypeError, "class indices or probabilities", [[IMAGE, torch.tensor([1])]], {}),
    (ValueError, r"shape \[2, 2\]; batched=True", [np.eye(2)], {}),
    (ValueError, r"shape \[2\]; batched=True", [[0, 1]], {"max_samples": 1}),
    (ValueError, r"shape \[2\]; batched=True", [[0, 1]], {"method": "median_frequency"}),
    (ValueError, "batched=False are for items", torch.tensor([1]), {"batched": False}),
    (ValueError, "label_of and", torch.tensor([1]), {"label_of": int}),
    (ValueError, "method is 'sqrt'", LABELS, {"method": "sqrt"}),
    (ValueError, "beta is 1", LABELS, {"beta": 1}),
    (ValueError, "beta is nan", LABELS, {"beta": float("nan")}),
    (ValueError, "beta is '0.9'", LABELS, {"beta": "0.9"}),
    (ValueError, "num_classes is 0", LABELS, {"num_classes": 0}),
    (TypeError, "num_classes must be an int", LABELS, {"num_classes": 4.0}),
    (ValueError, "max_samples is 0", LABELS, {"max_samples": 0}),
    (TypeError, "seed must be an int", LABELS, {"seed": None}),
    (TypeError, "ignore_index must be an int", LABELS, {"ignore_index": None}),
    (RuntimeError, "init_process_group", LABELS, {"group": True}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "message", "labels", "options"),
    BAD,
    ids=[f"{i}: {row[1]}" for i, row in enumerate(BAD)],
)
def test_bad_input(error: type[Exception], message: str, labels, options: dict) -> None:
    with pytest.raises(error, match=message):
        ce.class_weights(labels, **options)


def test_an_error_of_the_data_is_its_own() -> None:
    def broken() -> Iterator[int]:
        yield 0
        raise KeyError("a file")

    with pytest.raises(KeyError, match="a file"):
        ce.class_weights(broken())


# Ranks.


RANKS = 2


def parts() -> dict[str, tuple[tuple, dict]]:
    """Per case: what each rank has, and the options."""
    generator = torch.Generator().manual_seed(1)
    plain = torch.randint(5, (40,), generator=generator)
    maps = torch.randint(4, (6, 3, 3), generator=generator)
    maps[0] = 0
    soft = torch.rand(9, 3, generator=generator)
    return {
        **{method: ((plain[:9], plain[9:]), {"method": method}) for method in METHODS},
        "images": ((maps[:4], maps[4:]), {"method": "median_frequency"}),
        "probabilities": ((soft[:2], soft[2:]), {}),
        "last class on one rank": ((torch.tensor([0, 1]), torch.tensor([6, 2, 3, 4, 5])), {}),
        "nothing on one rank": ((torch.tensor([-100]), plain), {}),
    }


BAD_PARTS = {
    "nothing": ([], []),
    "a bad label": ([0, 1], [0, -1]),
    "classes differ": (torch.rand(4, 3), torch.rand(4, 2)),
    "more than probabilities": (torch.rand(4, 3), [4]),
}


def main(rank: int, store: str) -> None:
    """Prints, as JSON, the weights of each case, or the error."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS
    )
    results = {}
    for name, (data, options) in parts().items():
        results[name] = ce.class_weights(data[rank], group=True, **options).tolist()
    group = torch.distributed.new_group(list(range(RANKS)))
    stream = Items(LABELS[rank::RANKS])
    results["a group of their own"] = ce.class_weights(stream, group=group, progress=True).tolist()
    lonely = torch.distributed.new_group([1])
    for name, data in BAD_PARTS.items():
        try:
            ce.class_weights(data[rank], group=True)
        except Exception as error:
            results[name] = repr(error)
    try:
        results["one of two"] = ce.class_weights([rank, 1 - rank], group=lonely).tolist()
    except TypeError as error:
        results["one of two"] = str(error)
    print(json.dumps(results), flush=True)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict, str]]:
    """The results and the stderr of each rank."""
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    store = tmp_path_factory.mktemp("store") / "file"
    command = [sys.executable, "-W", "ignore", __file__]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(store)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(RANKS)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for (
        out,
        errors,
    ) in outputs:  # not the exit status: gloo's threads can abort a process at its end
        assert out, errors
    return [(json.loads(out), errors) for out, errors in outputs]


def test_ranks_get_the_weights_of_the_whole(ranks) -> None:
    for name, (data, options) in parts().items():
        expected = ce.class_weights(torch.cat(data), **options)
        for results, _ in ranks:
            torch.testing.assert_close(torch.tensor(results[name]), expected)
    for results, _ in ranks:
        assert results["a group of their own"] == ce.class_weights(LABELS).tolist()


def test_a_failure_of_one_rank_ends_all(ranks) -> None:
    (first, _), (second, _) = ranks
    assert "IndexError('label -1" in second["a bad label"]
    assert first["a bad label"].startswith('RuntimeError("class_weights failed on rank 1')
    assert "IndexError" in first["a bad label"]
    for results in (first, second):
        assert results["nothing"].startswith("ValueError('no label was counted")
        assert results["classes differ"].endswith("different numbers of classes: [3, 2]')")
        assert results["more than probabilities"].endswith("classes: [3, 5]')")


def test_a_process_outside_of_the_group(ranks) -> None:
    assert "process group that this process belongs to" in ranks[0][0]["one of two"]
    assert ranks[1][0]["one of two"] == [1.0, 1.0]


def test_rank_0_shows_the_progress(ranks) -> None:
    pytest.importorskip("tqdm")
    assert ["class_weights" in errors for _, errors in ranks] == [True, False]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
