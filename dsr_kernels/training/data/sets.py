"""Data sets and their batches. Those held in memory are here, those read from files in images.py.

Everything random is drawn from a stream named by (seed, purpose, epoch, batch). So there is no
generator state to save, and a run resumed in the middle of an epoch sees the same images.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from dsr_kernels.distribution import share_out
from dsr_kernels.errors import UsageError, check_path, in_words
from dsr_kernels.training.data import images, listing, readers
from dsr_kernels.training.data.streams import Batches, Draw, stream
from dsr_kernels.training.placement import CPU, move
from dsr_kernels.training.recipe.schema import Data

TENSOR_AUGMENTS = ("none", "crop_flip", "crop")
SPLIT_SEED = 20190515  # fixed, so that runs with different seeds are compared on the same images


class Split(Protocol):
    """One part of a data set: its labels, and batches of uint8 images [B, C, H, W] with labels."""

    labels: torch.Tensor  # [N] int64
    classes: int
    image_shape: tuple[int, int, int]  # (C, H, W)

    def __len__(self) -> int: ...

    def take(self, index: torch.Tensor) -> Split:
        """The images `index`, in this order, as a split of their own."""

    def fingerprint(self) -> str:
        """A text that differs for other images."""

    def train_batches(
        self, settings: Data, chunks: torch.Tensor, first: int, draw: Draw
    ) -> Batches:
        """A batch for each row of `chunks` [batches, B], which holds the numbers of images.

        The first row is batch `first` of its epoch. `draw` gives the random stream of a number.
        """

    def eval_batches(self, batch_size: int) -> Batches:
        """All images in order, without augmentation."""


@dataclass(frozen=True)
class TensorSplit:
    """Images and labels of one part of a data set, in memory."""

    images: torch.Tensor  # [N, C, H, W] uint8
    labels: torch.Tensor  # [N] int64
    classes: int = 10

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    def take(self, index: torch.Tensor) -> TensorSplit:
        return TensorSplit(self.images[index], self.labels[index], self.classes)

    def fingerprint(self) -> str:
        sums = [zlib.crc32(part.contiguous().numpy()) for part in (self.images, self.labels)]
        return f"crc {sums[0]:08x} {sums[1]:08x}"

    def train_batches(
        self, settings: Data, chunks: torch.Tensor, first: int, draw: Draw
    ) -> Batches:
        """As `Split` says; `draw` is called with the number of each batch."""
        for batch, chunk in enumerate(chunks, start=first):
            images = self.images[chunk]
            if settings.augment != "none":
                flip = settings.augment == "crop_flip"
                images = crop_flip(images, settings.pad, flip, draw(batch))
            yield images, self.labels[chunk]

    def eval_batches(self, batch_size: int) -> Batches:
        for begin in range(0, len(self), batch_size):
            part = slice(begin, begin + batch_size)
            yield self.images[part], self.labels[part]


@dataclass(frozen=True)
class DataSet:
    """The parts of a data set, with the training images' mean and standard deviation.

    `validation` is None where no images are held out.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    mean: torch.Tensor  # [C] in 0..255
    std: torch.Tensor  # [C]

    @property
    def classes(self) -> int:
        return self.train.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train.image_shape

    def fingerprint(self) -> str:
        """A text that differs for other training images. A run resumes only on its own."""
        return f"{self.name}, {len(self.train)} training images, {self.train.fingerprint()}"

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] -> float32, with mean 0 and deviation 1 per channel in training."""
        mean, std = (part.to(images.device).view(1, -1, 1, 1) for part in (self.mean, self.std))
        return (images.float() - mean) / std


def load(settings: Data, data_dir: Path | None = None) -> DataSet:
    """The data set that the recipe names. Raises UsageError for missing or damaged files."""
    _check_settings(settings)
    if data_dir is not None:
        check_path(data_dir, "--data-dir")
    try:
        train, test = _parts(settings, data_dir)
    except OSError as error:
        raise UsageError(f"data set {settings.name}: {in_words(error)}") from None
    validation = None
    if settings.validation:
        if settings.validation >= len(train):
            raise UsageError(
                f"recipe: data.validation: expected less than the {len(train)} training images, "
                f"got {settings.validation}"
            )
        held, rest = stratified(train.labels, settings.validation)
        train, validation = train.take(rest), train.take(held)
    if settings.name == "imagenet":
        return DataSet(settings.name, train, validation, test, *images.moments())
    height, width = train.image_shape[1:]
    if settings.augment != "none" and settings.pad >= min(height, width):
        raise UsageError(
            f"recipe: data.pad: expected less than the image side, got {settings.pad} "
            f"for {height}x{width}"
        )
    return DataSet(settings.name, train, validation, test, *moments(train.images))


def _parts(settings: Data, data_dir: Path | None) -> tuple[Split, Split]:
    """What there is to train on, and the test images."""
    if settings.name == "digits":
        full = _split(*readers.digits(settings.image_size))
        test, rest = stratified(full.labels, 360)
        return full.take(rest), full.take(test)
    if settings.name == "imagenet":
        listings = listing.find(data_dir)
        return images.splits(*listings, settings.image_size, settings.workers)
    train, test = readers.READERS[settings.name](data_dir)
    return _split(*train), _split(*test)


def _check_settings(settings: Data) -> None:
    """Raises UsageError for a setting that this data set does not have."""
    if settings.image_size and settings.name not in ("digits", "imagenet"):
        raise UsageError(
            f"recipe: data.image_size is for digits and imagenet only, not for {settings.name}"
        )
    fitting = ("none", images.AUGMENT) if settings.name == "imagenet" else TENSOR_AUGMENTS
    if settings.augment not in fitting:
        raise UsageError(
            f"recipe: data.augment: expected one of {', '.join(fitting)} for {settings.name}, "
            f"got {settings.augment}"
        )


def _split(images: np.ndarray, labels: np.ndarray) -> TensorSplit:
    return TensorSplit(torch.from_numpy(images), torch.from_numpy(labels).long())


def stratified(labels: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The indices of `count` images, and those of all others.

    Each class has its share of the `count`, by largest remainders.
    """
    order = torch.randperm(len(labels), generator=stream(SPLIT_SEED, "split"))
    classes, totals = labels.unique(return_counts=True)
    quota = share_out(count, totals.tolist(), totals.tolist())
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, number in zip(classes, quota, strict=True):
        chosen[order[labels[order] == label][:number]] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()


def moments(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per channel, [C] each.

    They come from exact integer histograms, so no order of summation matters.
    """
    level = torch.arange(256, dtype=torch.float64)
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = (counts * level).sum() / counts.sum()
        variance = (counts * (level - mean) ** 2).sum() / counts.sum()
        means.append(mean)
        deviations.append(variance.sqrt().clamp_min(1e-6))
    return torch.stack(means).float(), torch.stack(deviations).float()


def crop_flip(
    images: torch.Tensor, pad: int, flip: bool, generator: torch.Generator
) -> torch.Tensor:
    """Pads the images by `pad` with reflections and crops each at random to its old size.

    With `flip`, half of the images are mirrored. All of it is one gather for the batch. It equals
    ``F.pad(image, [pad] * 4, mode='reflect')[:, y : y + H, x : x + W]`` for each image.
    """
    count, channels, height, width = images.shape
    offsets = torch.randint(-pad, pad + 1, (2, count, 1), generator=generator)
    rows = _reflect(torch.arange(height) + offsets[0], height)  # [B, H]
    columns = _reflect(torch.arange(width) + offsets[1], width)  # [B, W]
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count).view(-1, 1, 1, 1)
    channel = torch.arange(channels).view(1, -1, 1, 1)
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    return (size - 1) - ((size - 1) - index.abs()).abs()


def train_batches(
    data: DataSet,
    settings: Data,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    device: torch.device = CPU,
) -> Batches:
    """Batches `start`, `start + 1`, ... of one epoch: (normalised float images, labels).

    Every epoch has an order of its own, and leaves out the images that do not fill a last batch.
    Images travel to the device as bytes and become floats there.
    """
    order = torch.randperm(len(data.train), generator=stream(seed, "order", epoch))
    count = len(order) // batch_size
    chunks = order[start * batch_size : count * batch_size].view(-1, batch_size)
    draw = functools.partial(stream, seed, "augment", epoch)
    batches = data.train.train_batches(settings, chunks, start, draw)
    yield from _on_device(data, batches, device)


def eval_batches(
    data: DataSet, split: Split, batch_size: int, device: torch.device = CPU
) -> Batches:
    """The whole split in order: (normalised float images, labels)."""
    yield from _on_device(data, split.eval_batches(batch_size), device)


def _on_device(data: DataSet, batches: Batches, device: torch.device) -> Batches:
    """The batches, normalised on the device. Closing this iterator closes `batches`."""
    with contextlib.closing(batches):
        for images, labels in batches:
            images, labels = move(device, images, labels)
            yield data.normalize(images), labels
