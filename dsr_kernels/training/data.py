"""Data sets as uint8 tensors in memory, and the batches cut from them.

Everything random is drawn from a stream named by (seed, purpose, epoch, batch): there is no
generator state to save, and a run resumed in the middle of an epoch sees the very images it would
have seen.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dsr_kernels.training import readers
from dsr_kernels.training.errors import UsageError
from dsr_kernels.training.placement import CPU, move
from dsr_kernels.training.schema import Data

SPLIT_SEED = 20190515  # fixed, so that runs with different seeds are compared on the same images


def stream(seed: int, *path: object) -> torch.Generator:
    """A generator of its own for each purpose, derived from the seed by a hash."""
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


@dataclass(frozen=True)
class Split:
    """Images and labels of one part of a data set."""

    images: torch.Tensor  # [N, C, H, W] uint8
    labels: torch.Tensor  # [N] int64

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: torch.Tensor) -> Split:
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class DataSet:
    """Train, validation (None where none is held out) and test, with the training images' mean and
    deviation.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: int
    mean: torch.Tensor  # [C] in 0..255
    std: torch.Tensor  # [C]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.train.images.shape[1:])

    def fingerprint(self) -> str:
        """Tells whether a run is resumed on the images it was begun with."""
        sums = [
            zlib.crc32(part.contiguous().numpy()) for part in (self.train.images, self.train.labels)
        ]
        return f"{self.name}, {len(self.train)} training images, crc {sums[0]:08x} {sums[1]:08x}"

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] -> float32 with zero mean and unit deviation per channel of the
        training set.
        """
        mean, std = (part.to(images.device).view(1, -1, 1, 1) for part in (self.mean, self.std))
        return (images.float() - mean) / std


def load(settings: Data, data_dir: Path | None = None) -> DataSet:
    """The data set the recipe names; one clear UsageError where files are missing or damaged."""
    if settings.name == "digits":
        images, labels = readers.digits(settings.image_size)
        test, rest = stratified(torch.from_numpy(labels), 360)
        full = _split(images, labels)
        train, test = full.take(rest), full.take(test)
    else:
        if settings.image_size:
            raise UsageError(f"recipe: data.image_size is for digits only, not for {settings.name}")
        train, test = (_split(*part) for part in readers.READERS[settings.name](data_dir))
    validation = None
    if settings.validation:
        if settings.validation >= len(train):
            raise UsageError(
                f"recipe: data.validation: expected less than the {len(train)} training images, "
                f"got {settings.validation}"
            )
        held, rest = stratified(train.labels, settings.validation)
        train, validation = train.take(rest), train.take(held)
    height, width = train.images.shape[2:]
    if settings.augment != "none" and settings.pad >= min(height, width):
        raise UsageError(
            f"recipe: data.pad: expected less than the image side, got {settings.pad} "
            f"for {height}x{width}"
        )
    mean, std = moments(train.images)
    return DataSet(settings.name, train, validation, test, 10, mean, std)


def _split(images, labels) -> Split:
    return Split(torch.from_numpy(images), torch.from_numpy(labels).long())


def stratified(labels: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of `count` images with each class in its share (largest remainder), and of all the
    others.
    """
    order = torch.randperm(len(labels), generator=stream(SPLIT_SEED, "split"))
    classes, totals = labels.unique(return_counts=True)
    shares = totals * count
    quota = shares // len(labels)
    extra = (shares % len(labels)).argsort(descending=True, stable=True)[: count - int(quota.sum())]
    quota[extra] += 1
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, number in zip(classes, quota.tolist(), strict=True):
        chosen[order[labels[order] == label][:number]] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()


def moments(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per channel, from exact integer histograms (so free of summation
    order).
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
    """Reflect-pad by `pad`, crop at random to the old size, mirror half of them: one gather for the
    batch.

    Equals ``F.pad(image, [pad] * 4, mode='reflect')[:, y : y + H, x : x + W]`` image by image.
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
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches `start`, `start + 1`, ... of one epoch: (normalised float images, labels).

    Every epoch is a fresh permutation; the images that do not fill a last batch sit out this epoch.
    Images travel to the device as bytes and become floats there.
    """
    order = torch.randperm(len(data.train), generator=stream(seed, "order", epoch))
    for batch in range(start, len(order) // batch_size):
        part = data.train.take(order[batch * batch_size : (batch + 1) * batch_size])
        images = part.images
        if settings.augment != "none":
            generator = stream(seed, "augment", epoch, batch)
            images = crop_flip(images, settings.pad, settings.augment == "crop_flip", generator)
        images, labels = move(device, images, part.labels)
        yield data.normalize(images), labels


def eval_batches(
    data: DataSet, split: Split, batch_size: int, device: torch.device = CPU
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The whole split in order."""
    for begin in range(0, len(split), batch_size):
        part = slice(begin, begin + batch_size)
        images, labels = move(device, split.images[part], split.labels[part])
        yield data.normalize(images), labels
