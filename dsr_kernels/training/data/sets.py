"""Data sets and their batches. Those held in memory are here, those read from files in images.py.

Everything random is drawn from a stream named by (seed, purpose, epoch, batch). So there is no
generator state to save, and a run resumed in the middle of an epoch sees the same images.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from dsr_kernels.errors import UsageError, check_path, in_words
from dsr_kernels.training.data import images, listing, readers, torchvision_sets, user_sets
from dsr_kernels.training.data.streams import WHOLE, Batches, Draw, Share, stream
from dsr_kernels.training.data.tensors import TensorSplit, stratified
from dsr_kernels.training.placement import CPU, move
from dsr_kernels.training.recipe.schema import DATA_SETS, Data

PICTURES = ("imagenet", "folder")
TENSOR_AUGMENTS = ("none", "crop_flip", "crop")


class Split(Protocol):
    """One part of a data set: its labels, and batches of images [B, C, H, W] with labels.

    Images are bytes, or what a user's own data are: inputs [B, ...] as a model takes them.
    """

    labels: torch.Tensor  # [N] int64
    classes: int
    image_shape: tuple[int, ...]  # (C, H, W)
    dtype: torch.dtype  # of what the model sees

    def __len__(self) -> int: ...

    def take(self, index: torch.Tensor) -> Split:
        """The images `index`, in this order, as a split of their own."""

    def moments(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Mean and standard deviation per channel in 0..255, [C] each; None: there is nothing to
        normalise.
        """

    def fingerprint(self) -> str:
        """A text that differs for other images."""

    def train_batches(
        self, settings: Data, chunks: torch.Tensor, first: int, draw: Draw, share: Share = WHOLE
    ) -> Batches:
        """The `share` of a batch for each row of `chunks` [batches, B], which holds the numbers of
        images.

        The first row is batch `first` of its epoch. `draw` gives the random stream of a number. An
        image looks the same in any share.
        """

    def eval_batches(self, batch_size: int, share: Share = WHOLE) -> Batches:
        """All images in order, without augmentation, `batch_size` at a time; of each such batch the
        `share`, which may be empty.
        """


@dataclass(frozen=True)
class DataSet:
    """The parts of a data set, with the training images' mean and standard deviation.

    `validation` is None where no images are held out. A user's own data are not normalised here:
    `mean` and `std` are None.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    mean: torch.Tensor | None  # [C] in 0..255
    std: torch.Tensor | None  # [C]

    @property
    def classes(self) -> int:
        return self.train.classes

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.train.image_shape

    @property
    def dtype(self) -> torch.dtype:
        return self.train.dtype

    def fingerprint(self) -> str:
        """A text that differs for other training images. A run resumes only on its own."""
        return f"{self.name}, {len(self.train)} training images, {self.train.fingerprint()}"

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] -> float32, with mean 0 and deviation 1 per channel in training."""
        if self.mean is None or self.std is None:
            return images
        mean, std = (part.to(images.device).view(1, -1, 1, 1) for part in (self.mean, self.std))
        return (images.float() - mean) / std


def load(settings: Data, data_dir: Path | None = None) -> DataSet:
    """The data set that the recipe names. Raises UsageError for missing or damaged files."""
    _check_settings(settings)
    if data_dir is not None:
        check_path(data_dir, "--data-dir")
    try:
        train, validation, test = _parts(settings, data_dir)
    except OSError as error:
        raise UsageError(f"data set {settings.name}: {in_words(error)}") from None
    if settings.validation:
        if validation is not None:
            raise UsageError(
                f"recipe: data.validation: {settings.name} brings its own validation part, expected"
                f" 0, got {settings.validation}"
            )
        if settings.validation >= len(train):
            raise UsageError(
                f"recipe: data.validation: expected less than the {len(train)} training images, "
                f"got {settings.validation}"
            )
        held, rest = stratified(train.labels, settings.validation)
        train, validation = train.take(rest), train.take(held)
    if isinstance(train, TensorSplit):
        height, width = train.image_shape[1:]
        if settings.augment != "none" and settings.pad >= min(height, width):
            raise UsageError(
                f"recipe: data.pad: expected less than the image side, got {settings.pad} "
                f"for {height}x{width}"
            )
    return DataSet(settings.name, train, validation, test, *(train.moments() or (None, None)))


def _parts(settings: Data, data_dir: Path | None) -> tuple[Split, Split | None, Split]:
    """What there is to train on, validation images where the data bring them, and test images."""
    if settings.name == "digits":
        full = _split(*readers.digits(settings.image_size))
        test, rest = stratified(full.labels, 360)
        return full.take(rest), None, full.take(test)
    if settings.name in PICTURES:
        listings = listing.find(settings.name, data_dir)
        train, test = images.splits(*listings, settings.image_size, settings.workers)
        return train, None, test
    if settings.name in readers.READERS:
        train, test = readers.READERS[settings.name](data_dir)
        return _split(*train), None, _split(*test)
    if settings.name.startswith("torchvision:"):
        arrays = torchvision_sets.find(settings, data_dir)
        if arrays.in_memory:
            _check_augment(settings, TENSOR_AUGMENTS)
            train, test = (_split(*part, arrays.classes) for part in arrays.parts)
        else:
            _check_augment(settings, ("none", images.AUGMENT))
            train, test = (
                user_sets.UserSplit.of(settings, part, name, arrays.classes)
                for part, name in zip(arrays.parts, ("training", "test"), strict=True)
            )
        return train, None, test
    return user_sets.load(settings, data_dir)


def _check_settings(settings: Data) -> None:
    """Raises UsageError for a setting that this data set does not have."""
    name = settings.name
    if name in DATA_SETS:
        if settings.arguments or settings.classes:
            key = "arguments" if settings.arguments else "classes"
            raise UsageError(f"recipe: data.{key}: is for data of your own, not for {name}")
        if settings.image_size and name not in ("digits", *PICTURES):
            raise UsageError(
                f"recipe: data.image_size: is for digits and pictures only, not for {name}"
            )
        _check_augment(settings, ("none", images.AUGMENT) if name in PICTURES else TENSOR_AUGMENTS)
    elif not name.startswith("torchvision:"):
        _check_augment(settings, ("none",))
        if settings.image_size:
            raise UsageError(
                f"recipe: data.image_size: {name} gives items of its own size, expected 0, got "
                f"{settings.image_size}"
            )


def _check_augment(settings: Data, fitting: tuple[str, ...]) -> None:
    if settings.augment not in fitting:
        raise UsageError(
            f"recipe: data.augment: expected one of {', '.join(fitting)} for {settings.name}, "
            f"got {settings.augment}"
        )


def _split(images: np.ndarray, labels: np.ndarray, classes: int = 10) -> TensorSplit:
    return TensorSplit(torch.from_numpy(images), torch.from_numpy(labels).long(), classes)


def train_batches(
    data: DataSet,
    settings: Data,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    device: torch.device = CPU,
    share: Share = WHOLE,
) -> Batches:
    """Batches `start`, `start + 1`, ... of one epoch: (normalised float images, labels), of each
    the process's `share`.

    Every epoch has an order of its own, and leaves out the images that do not fill a last batch.
    Images travel to the device as bytes and become floats there.
    """
    order = torch.randperm(len(data.train), generator=stream(seed, "order", epoch))
    count = len(order) // batch_size
    chunks = order[start * batch_size : count * batch_size].view(-1, batch_size)
    draw = functools.partial(stream, seed, "augment", epoch)
    batches = data.train.train_batches(settings, chunks, start, draw, share)
    yield from _on_device(data, batches, device)


def eval_batches(
    data: DataSet,
    split: Split,
    batch_size: int,
    device: torch.device = CPU,
    share: Share = WHOLE,
) -> Batches:
    """The whole split in order: (normalised float images, labels), of each batch the `share`."""
    yield from _on_device(data, split.eval_batches(batch_size, share), device)


def _on_device(data: DataSet, batches: Batches, device: torch.device) -> Batches:
    """The batches, normalised on the device. Closing this iterator closes `batches`."""
    with contextlib.closing(batches):
        for images, labels in batches:
            images, labels = move(device, images, labels)
            yield data.normalize(images), labels
