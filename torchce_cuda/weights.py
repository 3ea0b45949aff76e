"""Class weights from the labels themselves: read in batches, counted, then one formula.

`_source` makes of anything that holds labels an iterator of batches: class indices (n),
(n, d1, ...) or floating class probabilities (n, C, d1, ...). `_Counts` adds them up, ranks add up
theirs, `_weights` is the mathematics.
"""

import math
import random
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from numbers import Integral, Real
from operator import itemgetter, length_hint

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from . import arguments

_METHODS = ("balanced", "inverse", "inverse_sqrt", "effective", "median_frequency")
_PIECE = 1 << 20  # labels counted at a time: bounds the memory of int64 copies and masks
_NUMBERS = 1 << 16  # single labels of a stream that are collected for one count
_MOST_DERIVED = 1 << 24  # classes; a larger label is a mistake or needs num_classes
_NAMED = 10  # classes in a warning
_QUIET_SECONDS = 3.0  # before a progress bar that nobody asked for
_MASS, _PLAIN, _PIXELS = 0, 1, 2  # rows of _Counts.sums


def class_weights(
    labels: Tensor | Iterable | Dataset,
    num_classes: int | None = None,
    *,
    method: str = "balanced",
    beta: float = 0.999,
    max_samples: int | None = None,
    seed: int = 0,
    ignore_index: int = -100,
    label_of: Callable | None = None,
    batched: bool | None = None,
    group=None,
    progress: bool | None = None,
) -> Tensor:
    """One factor per class from how often it occurs: the `weight` of the losses.

    With n_c the labels of class c (for probabilities their sum), K the number of classes that
    occur:

    - "balanced": ``sum(n) / (K n_c)``, so that the mean weight over all labels is 1. As
      scikit-learn's ``compute_class_weight("balanced")``; King & Zeng, Logistic Regression in Rare
      Events Data, 2001.
    - "inverse", "inverse_sqrt": proportional to ``1 / n_c`` and ``1 / sqrt(n_c)``.
    - "effective": proportional to ``(1 - beta) / (1 - beta^n_c)``, the inverse of the effective
      number of samples. Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019.
    - "median_frequency": ``median(f) / f_c``, where f_c is n_c divided by the labels of those
      images in which c occurs; labels of shape (N) are one image. Eigen & Fergus, Predicting Depth,
      Surface Normals and Semantic Labels with a Common Multi-Scale Convolutional Architecture,
      2015.

    The three that are proportional have mean 1 over the classes that occur (their sum is K, in
    "effective" as in its paper).

    A class that never occurs gets weight 1, as without weights, and a UserWarning names it. In
    training with class indices its weight multiplies no loss; where it does count (label smoothing,
    a validation set), 0 would drop the class, and make the mean of a batch of nothing else 0 / 0,
    and an extrapolated huge weight would let it dominate.

    Args:
        labels: class indices of any integer dtype or bool, or class probabilities of any floating
            dtype, as one of

            - a tensor or array (N), (N, d1, ..., dk) or 0-d; probabilities (N, C) or
              (N, C, d1, ..., dk). Memory-mapped arrays are read in pieces.
            - an iterable (list, generator, ...) of ints, or of tensors, arrays and lists: see
              `batched`. One item is held at a time, or 65536 ints.
            - a `torch.utils.data.Dataset`, map-style or iterable: one item at a time. Of an item
              that is a tuple or list the last element is the label. A dataset's `targets`
              (torchvision) and a `TensorDataset`'s last tensor, also behind a `Subset`, are used
              without loading any item, unless `label_of` is given, or a `target_transform` is set,
              or `targets` is no array and no list of ints of the dataset's length.
            - a `DataLoader`: what it yields is counted, with its sampler, in one pass; loading in
              parallel is its ``num_workers``. Of a batch that is a tuple or list the last element
              is the labels, which may be a list of one label map per sample.
        num_classes: C. By default the largest label plus one, or the C of probabilities; give it
            where the labels at hand need not have the last class, as with `max_samples`.
        method: one of those above.
        beta: of "effective", in [0, 1); 0 weighs all classes alike, towards 1 it becomes "inverse".
        max_samples: take at most so many samples, at random, without replacement, each as likely.
            A sample is an item of a map-style dataset or list, a row of an array; only those chosen
            are loaded. Anything else is read to its end, and up to twice as many labels are kept.
            The draw comes before `ignore_index`; "effective" takes the n_c of the sample.
        seed: of that draw. The same seed and data give the same sample, whatever the batch size.
        ignore_index: class indices of this value are not counted (255 in many label maps). It has
            no meaning for probabilities.
        label_of: picks the label of an item (of a batch, of a `DataLoader`) in place of the rule
            above: ``label_of=lambda item: item["label"]``.
        batched: whether the items of an iterable have samples as their first dimension. True for a
            `DataLoader`, False for a `Dataset`. Nothing is assumed of other iterables, or of a
            `DataLoader` without a batch size: there it is to be given, where it matters, for items
            that are not ints ("median_frequency", `max_samples`, and probabilities beyond (C)).
        group: a process group, or True for the default one: every rank of it calls with its own
            part of the data, and all get the weights of the whole. `max_samples` holds per rank.
        progress: a bar for what is streamed, by tqdm if that is installed. None: on a terminal
            after 3 s; True: at once, anywhere (UserWarning without tqdm); False: never. In a group
            rank 0 alone shows it.

    Returns:
        float32 of shape (C), finite, on the device of a tensor of labels, else on the
        CPU. Counts are float64, so exact up to 2^53 labels, and so is the formula.

    Raises:
        IndexError: a label outside [0, C) that is not `ignore_index`.
        ValueError: no label was counted; probabilities that are negative, not finite or of another
            C; `batched` is missing; arguments out of range.
        TypeError: labels that are neither integers nor probabilities; an item without a label.
        RuntimeError: another rank of `group` failed; it raises its own error.
    """
    if method not in _METHODS:
        raise ValueError(f"method is {method!r}, but must be one of {', '.join(_METHODS)}")
    if not isinstance(beta, Real) or not 0 <= beta < 1:
        raise ValueError(f"beta is {beta!r}, but must be a number in [0, 1)")
    if num_classes is not None:
        num_classes = _positive("num_classes", num_classes)
    if max_samples is not None:
        max_samples = _positive("max_samples", max_samples)
    seed = arguments.as_integer("seed", seed)
    ignore_index = arguments.as_integer("ignore_index", ignore_index)
    if group is not None:
        group = _process_group(group)
        progress = progress if dist.get_rank(group) == 0 else False

    by_image = method == "median_frequency"
    counts = _Counts(num_classes, ignore_index, by_image)

    def count() -> None:
        for batch in _source(labels, label_of, batched, by_image, max_samples, seed, progress):
            counts.add(batch)

    if group is None:
        count()
    else:
        _count_on_all_ranks(count, counts, group)
    mass = counts.sums[_MASS]
    if not mass.any():
        raise ValueError(
            "no label was counted: labels is empty, or holds nothing but "
            f"ignore_index ({ignore_index}) or probabilities of 0"
        )
    absent = (mass == 0).nonzero().flatten().tolist()
    if absent:
        warnings.warn(
            f"{len(absent)} of {len(mass)} classes never occur and get weight 1: {_names(absent)}",
            stacklevel=2,
        )
    device = labels.device if isinstance(labels, Tensor) else "cpu"
    return _weights(method, float(beta), counts).to(device)


# The formulas.


def _weights(method: str, beta: float, counts: "_Counts") -> Tensor:
    """float32 (C); everything before that in float64, over the classes that occur."""
    occurs = counts.sums[_MASS] > 0
    n = counts.sums[_MASS][occurs]
    if method == "balanced":
        weights = n.sum() / (len(n) * n)
    elif method == "inverse":
        weights = _inverse_with_mean_1(n)
    elif method == "inverse_sqrt":
        weights = _inverse_with_mean_1(n.sqrt())
    elif method == "effective":
        log_beta = math.log(beta) if beta > 0 else -math.inf
        weights = _inverse_with_mean_1(-torch.expm1(n * log_beta))
    else:
        frequency = n / counts.labels_where_it_occurs()[occurs]
        weights = statistics.median(frequency.tolist()) / frequency
    largest = torch.finfo(torch.float32).max  # probabilities can sum to 1e-40
    result = torch.ones(len(occurs), dtype=torch.float64, device="cpu")
    result[occurs] = weights.clamp(max=largest)
    return result.float()


def _inverse_with_mean_1(amount: Tensor) -> Tensor:
    amount = amount.clamp(min=torch.finfo(torch.float64).tiny)
    ratio = amount.min() / amount  # in [0, 1], where 1 / amount could overflow
    return ratio / ratio.mean()


# Counting.


class _Counts:
    """Sums per class over batches, on the CPU, float64 (1, C), or (3, C) with `by_image`.

    Row `_MASS`: labels of the class, or the sum of their probabilities. Row `_PLAIN`: those of them
    that are no part of an image. Row `_PIXELS`: all labels of the images where the class occurs.
    """

    def __init__(self, num_classes: int | None, ignore_index: int, by_image: bool) -> None:
        self.fixed = num_classes
        self.ignore_index = ignore_index
        self.by_image = by_image
        rows = 3 if by_image else 1
        self.sums = torch.zeros(rows, num_classes or 0, dtype=torch.float64, device="cpu")

    def add(self, batch: Tensor) -> None:
        """Class indices (n), (n, d1, ...) or class probabilities (n, C), (n, C, d1, ...)."""
        if batch.numel() == 0:
            return
        if batch.device.type not in ("cpu", "cuda"):
            batch = batch.cpu()
        add = self._add_probabilities if batch.is_floating_point() else self._add_indices
        for piece in batch.split(max(1, _PIECE // batch[0].numel())):
            add(piece)

    def labels_where_it_occurs(self) -> Tensor:
        """(C): all plain labels together are one image."""
        _, plain, pixels = self.sums
        return pixels + (plain > 0) * plain.sum()

    def widen(self, num_classes: int) -> None:
        self.sums = F.pad(self.sums, (0, num_classes - self.sums.shape[1]))

    def _add_indices(self, labels: Tensor) -> None:
        labels = _as_int64(labels).flatten(1) if labels.dim() > 1 else _as_int64(labels)
        values = labels.flatten()
        low, high = torch.stack(values.aminmax()).tolist()
        if low <= self.ignore_index <= high:
            values = values[values != self.ignore_index]
            if values.numel() == 0:
                return
            low, high = torch.stack(values.aminmax()).tolist()
        self._check_range(low, high)
        num_classes = self.fixed or max(high + 1, self.sums.shape[1])
        self.widen(num_classes)
        if self.by_image and labels.dim() > 1:
            for images in labels.split(max(1, _PIECE // num_classes)):
                first = num_classes * torch.arange(len(images), device=images.device)
                bins = (images + first[:, None])[images != self.ignore_index]
                counts = torch.bincount(bins, minlength=len(images) * num_classes)
                self._add_images(counts.view(-1, num_classes))
        else:
            self._add_plain(torch.bincount(values, minlength=num_classes))

    def _add_probabilities(self, labels: Tensor) -> None:
        if labels.dim() < 2:
            raise TypeError(
                f"labels have dtype {labels.dtype} and shape (N): class indices must be integers, "
                "class probabilities of shape (N, C) or (N, C, d1, ...)"
            )
        low, high = torch.stack(labels.aminmax()).tolist()
        if not (low >= 0 and high < math.inf):
            bad = low if not low >= 0 else high
            raise ValueError(f"a class probability is {bad}, but must be finite and >= 0")
        num_classes = labels.shape[1]
        if num_classes != (self.fixed or num_classes) or num_classes < self.sums.shape[1]:
            raise ValueError(
                f"labels have probabilities of {num_classes} classes, but there are "
                f"{self.fixed or self.sums.shape[1]}"
            )
        self.fixed = num_classes
        self.widen(num_classes)
        if labels.dim() > 2:
            labels = labels.flatten(2).sum(2, dtype=torch.float64)
            if self.by_image:
                self._add_images(labels)
                return
        self._add_plain(labels.sum(0, dtype=torch.float64))

    def _add_plain(self, mass: Tensor) -> None:
        self.sums[: _PLAIN + 1] += mass.cpu()

    def _add_images(self, mass: Tensor) -> None:
        """(n, C): one row per image."""
        mass = mass.double().cpu()
        self.sums[_MASS] += mass.sum(0)
        self.sums[_PIXELS] += mass.sum(1) @ (mass > 0).double()

    def _check_range(self, low: int, high: int) -> None:
        if low >= 0 and high < (self.fixed or _MOST_DERIVED):
            return
        bad = low if low < 0 else high
        if self.fixed is None and bad >= 0:
            raise IndexError(
                f"label {bad} would make {bad + 1} classes; give num_classes, or ignore_index"
            )
        allowed = "at least 0" if self.fixed is None else f"in [0, {self.fixed})"
        raise IndexError(
            f"label {bad} is out of bounds: labels must be {allowed}, "
            f"or ignore_index ({self.ignore_index})"
        )


def _as_int64(labels: Tensor) -> Tensor:
    if labels.is_complex():
        raise TypeError(f"labels have dtype {labels.dtype}, but must be integers or probabilities")
    wide = labels.long()
    if labels.dtype == torch.uint64 and (wide < 0).any():
        raise IndexError(f"label {wide[wide < 0][0].item() + 2**64} is out of bounds")
    return wide


# Ranks.


def _process_group(group) -> "dist.ProcessGroup":
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("group needs torch.distributed.init_process_group")
    if group is True:
        return dist.group.WORLD
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "group must be a process group that this process belongs to, True or None, not "
            f"{group!r}"
        )
    return group


def _count_on_all_ranks(count: Callable, counts: _Counts, group) -> None:
    """Counts here and sums over the ranks. A rank that fails still reports: none waits for it."""
    failure = None
    try:
        count()
    except Exception as error:
        failure = error
    width, fixed = counts.sums.shape[1], counts.fixed is not None
    reports = [None] * dist.get_world_size(group)
    dist.all_gather_object(reports, (width, fixed, failure and repr(failure)), group=group)
    if failure is not None:
        raise failure
    for rank, (_, _, message) in enumerate(reports):
        if message is not None:
            raise RuntimeError(f"class_weights failed on rank {rank} of the group: {message}")
    widths = [width for width, _, _ in reports]
    if {width for width, fixed, _ in reports if fixed} - {max(widths)}:
        raise ValueError(f"the ranks have different numbers of classes: {widths}")
    counts.widen(max(widths))
    on_cpu = "cpu:" in dist.get_backend_config(group)
    sums = counts.sums if on_cpu else counts.sums.to(torch.accelerator.current_accelerator())
    dist.all_reduce(sums, group=group)
    counts.sums = sums.cpu()


# Where labels come from.


def _source(
    labels, label_of, batched, by_image, max_samples, seed, progress
) -> Iterator[Tensor] | Sequence[Tensor]:
    """The labels in batches: sampled, under the progress bar, with samples in dimension 0."""
    if isinstance(labels, str | Mapping | Set):
        raise TypeError(f"labels must be a tensor, an iterable or a dataset, not {labels!r:.60}")
    if isinstance(labels, Dataset) and label_of is None:
        stored = _stored_labels(labels)
        if stored is not None:
            labels, batched = stored, None
    if _is_array(labels):
        if label_of is not None or batched is False:
            raise ValueError("label_of and batched=False are for items, but labels is one array")
        return _array_source(labels, max_samples, seed)

    pick = label_of
    if isinstance(labels, Dataset | DataLoader):
        pick = label_of or _last
        if batched is None:
            batched = _has_batches(labels)
    items, total = labels, length_hint(labels) or None
    indexable = isinstance(labels, Sequence) or (
        isinstance(labels, Dataset)
        and not isinstance(labels, IterableDataset)
        and hasattr(labels, "__len__")
    )
    if indexable:
        indices = range(len(labels))
        if max_samples is not None and not batched:
            indices = _draw(len(labels), max_samples, seed)
        items, total = (labels[index] for index in indices), len(indices)
    elif not isinstance(labels, Iterable | Dataset):
        raise TypeError(
            f"labels must be a tensor, an iterable or a dataset, not {type(labels).__name__}"
        )
    needs_samples = by_image or max_samples is not None
    batches = _batches(_watched(items, total, progress), pick, batched, needs_samples)
    if max_samples is None or (indexable and not batched):
        return batches
    return _sampled(batches, max_samples, seed)


def _array_source(labels, max_samples, seed) -> Iterator[Tensor] | Sequence[Tensor]:
    labels = _as_array(labels)
    if labels.ndim == 0:
        labels = labels.reshape(1)
    if max_samples is not None and max_samples < len(labels):
        indices = torch.tensor(_draw(len(labels), max_samples, seed), device="cpu")
        if not isinstance(labels, Tensor):
            labels = labels[indices.numpy()]
        else:
            labels = labels.detach()[indices.to(labels.device)]
    if isinstance(labels, Tensor):
        return [labels.detach()]
    rows = max(1, _PIECE * len(labels) // max(1, labels.size))
    pieces = (labels[start : start + rows] for start in range(0, len(labels), rows))
    return map(_as_tensor, pieces)


def _stored_labels(dataset: Dataset):
    """The labels that a dataset has in memory, or None: its items have to be loaded."""
    if isinstance(dataset, Subset):
        labels = _stored_labels(dataset.dataset)
        if labels is None:
            return None
        if _is_array(labels):
            return _as_array(labels)[list(dataset.indices)]
        return [labels[index] for index in dataset.indices]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[-1]
    labels = getattr(dataset, "targets", None)
    if labels is None or getattr(dataset, "target_transform", None) is not None:
        return None
    if isinstance(labels, list | tuple):  # some datasets have the paths of label maps there
        usable = all(issubclass(kind, Integral) for kind in set(map(type, labels)))
    else:
        usable = _is_array(labels)
    return labels if usable and len(labels) == length_hint(dataset) else None


def _has_batches(labels: Dataset | DataLoader) -> bool | None:
    if isinstance(labels, Dataset):
        return False
    return None if labels.batch_sampler is None else True


def _last(item):
    return item[-1] if isinstance(item, tuple | list) and item else item


def _batches(items, pick, batched, needs_samples) -> Iterator[Tensor]:
    numbers: list[int] = []
    for item in items:
        label = item if pick is None else pick(item)
        number = _as_number(label)
        if number is not None:
            numbers.append(number)
            if len(numbers) == _NUMBERS:
                yield _numbers_as_tensor(numbers)
                numbers = []
        elif pick and batched and isinstance(label, tuple | list) and _holds_arrays(label):
            yield from (_as_tensor(each)[None] for each in label)
        elif isinstance(label, tuple) and pick is None:
            raise TypeError(
                "an item of labels is a tuple; label_of=lambda item: item[-1] takes its last "
                "element as the label"
            )
        else:
            tensor = _as_tensor(label)
            if batched is not None:
                yield tensor if batched else tensor[None]
            elif tensor.is_floating_point() and tensor.dim() == 1:
                yield tensor[None]
            elif needs_samples or tensor.is_floating_point():
                raise ValueError(
                    f"an item of labels has shape {list(tensor.shape)}; batched=True says that its "
                    "first dimension is that of samples, batched=False that it is one sample"
                )
            else:
                yield tensor
    if numbers:
        yield _numbers_as_tensor(numbers)


def _as_number(label) -> int | None:
    if isinstance(label, int):
        return label
    if getattr(label, "ndim", None) == 0:  # of a tensor, an array, a NumPy scalar
        label = label.item()
        if not isinstance(label, int):
            raise TypeError(f"a label is {label!r}, but must be an integer, or probabilities (C)")
        return label
    return None


def _numbers_as_tensor(numbers: list[int]) -> Tensor:
    for bad in (min(numbers), max(numbers)):
        if not -(2**63) <= bad < 2**63:
            raise IndexError(f"label {bad} is out of bounds")
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def _is_array(value) -> bool:
    return isinstance(value, Tensor) or any(
        hasattr(value, name) for name in ("__array__", "__array_interface__")
    )


def _as_array(value):
    """As it is if it is a tensor, else as a NumPy array, without a copy where possible."""
    if isinstance(value, Tensor):
        return value
    import numpy

    return numpy.asarray(value)


def _holds_arrays(labels) -> bool:
    return len(labels) > 0 and _is_array(labels[0]) and getattr(labels[0], "ndim", 2) > 0


def _as_tensor(label) -> Tensor:
    if isinstance(label, Tensor):
        return label.detach()
    try:
        if _is_array(label):
            array = _as_array(label)
            # A copy of its own: writable, in native byte order, without negative strides.
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
        if isinstance(label, list | tuple):
            return torch.tensor(label, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"labels must be class indices or probabilities: {error}; label_of picks the label of "
            "an item"
        ) from error
    raise TypeError(
        f"a label must be an int, a tensor, an array or a list, not {type(label).__name__}; "
        'label_of picks the label of an item, as in label_of=lambda item: item["label"]'
    )


# A part of them.


def _draw(size: int, max_samples: int, seed: int) -> Sequence[int]:
    """Which of `size` samples are taken, in order."""
    if max_samples >= size:
        return range(size)
    return sorted(random.Random(seed).sample(range(size), max_samples))


def _sampled(batches: Iterable[Tensor], max_samples: int, seed: int) -> Iterator[Tensor]:
    """A uniform sample of a stream: every sample draws a key, the smallest keys stay."""
    generator = torch.Generator().manual_seed(seed)
    kept: list[tuple[float, int | Tensor]] = []
    bound = math.inf
    for batch in batches:
        keys = torch.rand(len(batch), generator=generator, dtype=torch.float64, device="cpu")
        chosen = keys < bound
        samples = batch[chosen.to(batch.device)]
        # Clones, since a view would keep all that were chosen with it alive.
        single = samples.dim() == 1 and not samples.is_floating_point()
        rows = _as_int64(samples).tolist() if single else map(Tensor.clone, samples)
        kept.extend(zip(keys[chosen].tolist(), rows, strict=True))
        if len(kept) > 2 * max_samples:
            kept = sorted(kept, key=itemgetter(0))[:max_samples]
            bound = kept[-1][0]
    kept = sorted(kept, key=itemgetter(0))[:max_samples]
    numbers = [row for _, row in kept if not isinstance(row, Tensor)]
    if numbers:
        yield torch.tensor(numbers, device="cpu")
    yield from (row[None] for _, row in kept if isinstance(row, Tensor))


# What the user sees.


def _watched(items: Iterable, total: int | None, progress: bool | None) -> Iterable:
    if progress is False:
        return items
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if progress:
            warnings.warn("class_weights shows no progress: tqdm is not installed", stacklevel=5)
        return items
    if progress:
        return tqdm(items, desc="class_weights", total=total)
    return tqdm(items, desc="class_weights", total=total, delay=_QUIET_SECONDS, disable=None)


def _names(classes: list[int]) -> str:
    named = ", ".join(map(str, classes[:_NAMED]))
    return named if len(classes) <= _NAMED else f"{named} and {len(classes) - _NAMED} more"


def _positive(name: str, value) -> int:
    value = arguments.as_integer(name, value)
    if value < 1:
        raise ValueError(f"{name} is {value}, but must be at least 1")
    return value
