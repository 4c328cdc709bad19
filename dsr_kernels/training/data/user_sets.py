"""Data sets of a user's own: torch's Datasets, read by our own order, so that runs resume exactly.

The order, and what belongs to which process, is ours. Before an item is read, the random numbers of
torch, numpy and Python are seeded by (seed, epoch, index). So transforms that draw from these give
the same item again, whatever the number of workers and wherever a run resumes. A transform with a
generator of its own does not.
"""

from __future__ import annotations

import sys
import traceback
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from dsr_kernels.errors import UsageError
from dsr_kernels.training.data.random_items import own_random_numbers, seed_all
from dsr_kernels.training.data.streams import WHOLE, Batches, Draw, Share, stream
from dsr_kernels.training.data.workers import Chunk, read
from dsr_kernels.training.recipe import references
from dsr_kernels.training.recipe.schema import Data

KEY = "data.name"
LABELS = ("targets", "labels")  # attributes of many Datasets
SOME = 16  # items that are read before training to see whether their labels are right


@dataclass(frozen=True)
class UserSplit:
    """One part of a user's data. `chosen` says which items of the dataset belong to it."""

    dataset: Any  # __len__, and __getitem__ that gives (input, label)
    name: str
    chosen: torch.Tensor  # [N] int64
    labels: torch.Tensor  # [N] int64; of a dataset that does not tell them, all 0
    classes: int
    image_shape: tuple[int, ...]  # of an input
    dtype: torch.dtype
    workers: int

    @classmethod
    def of(cls, settings: Data, dataset: Any, part: str, classes: int = 0) -> UserSplit:
        """All of `dataset`. Raises UsageError where it is none, or its items are not what a model
        and a loss take.
        """
        name = f"data set {settings.name}, {part} part"
        length = _length(dataset, name)
        known = _labels(dataset, length)
        shape, dtype = _form(dataset, name, settings.workers)
        labels = torch.zeros(length, dtype=torch.int64) if known is None else known
        classes = settings.classes or classes or _classes(dataset, known, name)
        everything = torch.arange(length)
        split = cls(dataset, name, everything, labels, classes, shape, dtype, settings.workers)
        split._check_some(known is not None)
        return split

    def __len__(self) -> int:
        return len(self.chosen)

    def _check_some(self, known: bool) -> None:
        """Raises UsageError for a wrong label where some items show it, before all are trained on.

        Read are those whose labels, as far as `known`, are out of range: a transform may put them
        right. Of labels that are not known some are read from all over the part.
        """
        if known:
            chunk = ((self.labels < 0) | (self.labels >= self.classes)).nonzero()[:SOME, 0]
        else:
            chunk = torch.linspace(0, len(self) - 1, SOME).round().long().unique()
        if len(chunk):
            for _ in read(_Items(self, [chunk], _draw_alike, WHOLE), min(self.workers, 1)):
                pass

    def moments(self) -> None:
        """None: a user's items are normalised already."""

    def take(self, index: torch.Tensor) -> UserSplit:
        return replace(self, chosen=self.chosen[index], labels=self.labels[index])

    def fingerprint(self) -> str:
        return f"{self.classes} classes, labels {zlib.crc32(self.labels.numpy()):08x}"

    def train_batches(
        self, settings: Data, chunks: torch.Tensor, first: int, draw: Draw, share: Share = WHOLE
    ) -> Batches:
        """As `sets.Split` says; `draw` is called with the number of each item."""
        return read(_Items(self, chunks, draw, share), self.workers)

    def eval_batches(self, batch_size: int, share: Share = WHOLE) -> Batches:
        chunks = torch.arange(len(self)).split(batch_size)
        return read(_Items(self, chunks, _draw_alike, share), self.workers)

    def batch(self, items: list[Any], indices: list[int]) -> Chunk:
        """(inputs [B, ...], labels [B] int64). Raises UsageError for items of other forms."""
        if not items:  # the share of a small batch
            empty = torch.zeros(0, *self.image_shape, dtype=self.dtype)
            return empty, torch.zeros(0, dtype=torch.int64)
        for item, index in zip(items, indices, strict=True):
            shape, dtype = form_of(item, f"{self.name}: item {index}")
            if (shape, dtype) != (self.image_shape, self.dtype):
                raise UsageError(
                    f"{self.name}: item {index}: expected an input {self.image_shape} of "
                    f"{self.dtype} as the first one, got {shape} of {dtype}"
                )
        inputs, labels = default_collate([(item[0], int(item[1])) for item in items])
        wrong = (labels < 0) | (labels >= self.classes)
        if wrong.any():
            at = int(wrong.nonzero()[0])
            raise UsageError(
                f"{self.name}: item {indices[at]}: expected a label from 0 to {self.classes - 1}, "
                f"got {int(labels[at])}; data.classes says how many there are"
            )
        return inputs, labels


@dataclass(frozen=True)
class _Items:
    """What workers read: this process's share of each chunk of numbers."""

    split: UserSplit
    chunks: Sequence[torch.Tensor]
    draw: Draw
    share: Share

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, batch: int) -> Chunk | UsageError:
        chunk = self.chunks[batch]
        numbers = chunk[self.share.of(len(chunk))].tolist()
        indices = self.split.chosen[numbers].tolist()
        items = []
        with own_random_numbers():
            for number, index in zip(numbers, indices, strict=True):
                seed_all(self.draw(number).initial_seed())
                try:
                    items.append(self.split.dataset[index])
                except Exception as error:
                    traceback.print_exception(error, file=sys.stderr)
                    words = f"{type(error).__name__}: {error}"
                    return UsageError(f"{self.split.name}: item {index} cannot be read: {words}")
        try:
            return self.split.batch(items, indices)
        except UsageError as error:
            return error


def _draw_alike(number: int) -> torch.Generator:
    """The random stream of an item that is evaluated: the same at any time and for any seed."""
    return stream(0, "evaluate", number)


def load(settings: Data, data_dir: Path | None) -> tuple[UserSplit, UserSplit | None, UserSplit]:
    """The training, validation and test part that the user's function gives; None for a validation
    part that it does not give. Raises UsageError for anything else.
    """
    found = references.find(settings.name, ())
    assert found is not None  # the schema has seen to that
    function = references.imported(found, KEY)
    with own_random_numbers(0):
        parts = references.call(function, KEY, settings.arguments, {"data_dir": data_dir})
        if not isinstance(parts, (tuple, list)) or len(parts) not in (2, 3):
            raise UsageError(
                f"recipe: {KEY}: expected {settings.name} to give Datasets (train, test) or (train,"
                f" validation, test), got {type(parts).__name__}"
            )
        train = UserSplit.of(settings, parts[0], "training")
        names = ("validation", "test")[-len(parts[1:]) :]
        pairs = zip(parts[1:], names, strict=True)
        others = [UserSplit.of(settings, part, name, train.classes) for part, name in pairs]
    for other in others:
        if (other.image_shape, other.dtype) != (train.image_shape, train.dtype):
            raise UsageError(
                f"{other.name}: expected inputs {train.image_shape} of {train.dtype} as in the "
                f"training part, got {other.image_shape} of {other.dtype}"
            )
    return train, others[0] if len(others) == 2 else None, others[-1]


def _length(dataset: Any, name: str) -> int:
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UsageError(
            f"{name}: expected a Dataset with __len__ and __getitem__, got "
            f"{type(dataset).__name__}; an iterable one cannot be read from the middle of an epoch"
        )
    if (length := len(dataset)) < 1:
        raise UsageError(f"{name}: expected at least one item, got none")
    return length


def _labels(dataset: Any, length: int) -> torch.Tensor | None:
    """All labels, where the dataset keeps them under one of the usual names."""
    for attribute in LABELS:
        found = getattr(dataset, attribute, None)
        if found is not None and hasattr(found, "__len__") and len(found) == length:
            labels = np.asarray(found)
            if labels.ndim == 1 and labels.dtype.kind in "iu":
                return torch.from_numpy(labels.astype(np.int64))
    return None


def _classes(dataset: Any, labels: torch.Tensor | None, name: str) -> int:
    listed = getattr(dataset, "classes", None)
    if isinstance(listed, Sequence) and listed:
        return len(listed)
    if labels is None:
        raise UsageError(
            f"{name}: its number of classes is not known; set data.classes, or give the Dataset "
            "`targets`, the labels of all its items"
        )
    return int(labels.max()) + 1


def _form(dataset: Any, name: str, workers: int) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and type of the first item's input.

    Where workers read the items, one reads this, too: a Dataset may open its file with the first
    item. Workers that inherit an open file share its position, and read each other's records.
    """
    (found,) = read(_First(dataset, name), min(workers, 1))
    shape, dtype = found
    return tuple(shape), dtype


@dataclass(frozen=True)
class _First:
    """The form of a dataset's first item, for a worker to find."""

    dataset: Any
    name: str

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> Any:
        with own_random_numbers(0):
            try:
                item = self.dataset[0]
            except Exception as error:
                failure = references.failed(error, f"{self.name}: item 0")
                if isinstance(failure, UsageError):
                    return failure
                raise failure from None
        try:
            return form_of(item, f"{self.name}: item 0")
        except UsageError as error:
            return error


def form_of(item: Any, name: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and type of an item's input. Raises UsageError unless it is (input, label), the input a
    tensor or an array of floats or int64, the label a whole number.
    """
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise UsageError(f"{name}: expected (input, label), got {_kind(item)}")
    value, label = item
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor) or value.dtype not in (torch.float32, torch.int64):
        raise UsageError(
            f"{name}: expected an input tensor of float32 (or int64, for embeddings), got "
            f"{_kind(value)}; give the Dataset a transform that makes one"
        )
    one = isinstance(label, torch.Tensor) and label.numel() == 1 and not label.is_floating_point()
    if not one and (isinstance(label, bool) or not isinstance(label, (int, np.integer))):
        raise UsageError(f"{name}: expected a whole number as the label, got {_kind(label)}")
    return tuple(value.shape), value.dtype


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    return f"a value of type {type(value).__name__}"
