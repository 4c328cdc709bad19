"""Data sets too large for memory: worker processes decode images as they are needed.

The augmentation of an image draws from a stream named by (seed, "augment", epoch, index). So
neither the number of workers nor the batch that a run resumes from changes what it looks like.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dsr_kernels.errors import UsageError, require
from dsr_kernels.training.data.listing import Listing
from dsr_kernels.training.data.streams import WHOLE, Batches, Draw, Share
from dsr_kernels.training.data.workers import Chunk, read
from dsr_kernels.training.recipe.schema import Data

if TYPE_CHECKING:
    from PIL import Image

AUGMENT = "resized_crop_flip"
SIDE = 224
RESIZED = 256 / 224  # shorter side before the central crop, as a multiple of the crop's side
AREA, ASPECT, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # of RandomResizedCrop
MOST_PIXELS = 2**26  # of a picture as the central crop resizes it
MOST_DECODED = 2**26  # pixels of a file: 192 MiB in RGB
# Others reach more code than pictures need, and EPS another program.
FORMATS = ("JPEG", "PNG")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in 0..1


def splits(train: Listing, test: Listing, side: int, workers: int) -> tuple[ImageSplit, ImageSplit]:
    """All images of both parts. `side` 0 stands for the paper's 224."""
    require("PIL.Image", "a data set of pictures", "imagenet")
    classes = int(train.labels.max()) + 1
    return tuple(
        ImageSplit(part, np.arange(len(part)), classes, side or SIDE, workers)
        for part in (train, test)
    )


def moments() -> tuple[torch.Tensor, torch.Tensor]:
    """ImageNet's mean and standard deviation per channel, [3] each, of pixels in 0..255."""
    return 255 * torch.tensor(MEAN), 255 * torch.tensor(STD)


@dataclass(frozen=True)
class ImageSplit:
    """One part of a data set, as files. `chosen` says which images of the listing belong to it."""

    listing: Listing
    chosen: np.ndarray  # [N] int64
    classes: int
    side: int
    workers: int  # processes that decode; 0: this one

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def labels(self) -> torch.Tensor:  # [N] int64
        return torch.from_numpy(self.listing.labels[self.chosen])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, self.side, self.side

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32  # as the model sees them

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        return moments()

    def fingerprint(self) -> str:
        return f"{self.classes} classes, files {self.listing.fingerprint(self.chosen)}"

    def take(self, index: torch.Tensor) -> ImageSplit:
        return replace(self, chosen=self.chosen[index.numpy()])

    def train_batches(
        self, settings: Data, chunks: torch.Tensor, first: int, draw: Draw, share: Share = WHOLE
    ) -> Batches:
        """As `sets.Split` says; `draw` is called with the number of each image."""
        drawn = draw if settings.augment != "none" else None
        return read(_Chunks(self, chunks, drawn, share), self.workers)

    def eval_batches(self, batch_size: int, share: Share = WHOLE) -> Batches:
        chunks = torch.arange(len(self)).split(batch_size)
        return read(_Chunks(self, chunks, None, share), self.workers)

    def image(self, number: int, generator: torch.Generator | None) -> np.ndarray:
        """Image `number`, uint8 [3, side, side]. Without generator it is the central crop."""
        index = self.chosen[number]
        where = self.listing.where(index)
        picture = decode(self.listing.read(index), where)
        # The central crop's shorter side becomes a certain number of pixels, whatever the other.
        width, height = sorted(picture.size)
        if height * round(self.side * RESIZED) ** 2 > MOST_PIXELS * width:
            raise UsageError(f"{where}: {picture.width} x {picture.height} pixels are too narrow")
        if generator is None:
            pixels = np.asarray(central_crop(picture, self.side))
        else:
            pixels = random_crop(picture, self.side, generator)
        return pixels.transpose(2, 0, 1)


def decode(raw: bytes, where: str) -> Image.Image:
    """The image in RGB. Raises UsageError, which says `where` it is, for what is no image."""
    pillow = require("PIL.Image", "a data set of pictures", "imagenet")
    try:
        with warnings.catch_warnings():  # Pillow only warns of a picture of 90 million pixels
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            picture = pillow.open(io.BytesIO(raw), formats=FORMATS)
            if picture.width * picture.height > MOST_DECODED:
                raise ValueError(f"{picture.width} x {picture.height} pixels")
            return picture.convert("RGB")
    except pillow.UnidentifiedImageError:
        raise UsageError(f"{where}: not a picture in JPEG or PNG") from None
    except Exception as error:  # a damaged image can raise nearly anything
        raise UsageError(f"{where}: cannot be decoded ({error}); the file is damaged") from None


def central_crop(picture: Image.Image, side: int) -> Image.Image:
    """Resizes bilinearly to a shorter side of `side` * 256 / 224 and cuts out the middle."""
    width, height = picture.size
    shorter = round(side * RESIZED)
    scale = shorter / min(width, height)
    # The longer side is cut off, not rounded, as torchvision does.
    wide, high = (shorter if s == min(width, height) else int(s * scale) for s in (width, height))
    left, top = round((wide - side) / 2), round((high - side) / 2)
    picture = picture.resize((wide, high), _bilinear())
    return picture.crop((left, top, left + side, top + side))


def random_crop(picture: Image.Image, side: int, generator: torch.Generator) -> np.ndarray:
    """A random part of the picture resized bilinearly to `side`, uint8 [side, side, 3].

    Half of the parts are mirrored.
    """
    numbers = torch.rand(4 * TRIES + 1, generator=generator, dtype=torch.float64).tolist()
    left, top, wide, high = crop_box(*picture.size, numbers)
    part = picture.crop((left, top, left + wide, top + high)).resize((side, side), _bilinear())
    pixels = np.asarray(part)
    return pixels[:, ::-1] if numbers[-1] < 0.5 else pixels


def crop_box(width: int, height: int, numbers: Sequence[float]) -> tuple[int, int, int, int]:
    """(left, top, width, height) of torchvision's RandomResizedCrop, from uniform `numbers`.

    A try takes four numbers: an area of 8 to 100 %, an aspect ratio of 3/4 to 4/3 (log-uniform)
    and a place. After ten tries that do not fit inside, it is the largest central part with such a
    ratio.
    """
    low, high = map(math.log, ASPECT)
    for attempt in range(TRIES):
        area, ratio, x, y = numbers[4 * attempt : 4 * attempt + 4]
        target = width * height * (AREA[0] + (AREA[1] - AREA[0]) * area)
        aspect = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    w, h = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    w, h = max(w, 1), max(h, 1)
    return (width - w) // 2, (height - h) // 2, w, h


def _bilinear() -> Image.Resampling:
    from PIL import Image

    return Image.Resampling.BILINEAR


@dataclass(frozen=True)
class _Chunks:
    """What workers read: the images and labels of this process's share of each chunk of numbers."""

    split: ImageSplit
    chunks: Sequence[torch.Tensor]
    draw: Draw | None
    share: Share

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, batch: int) -> Chunk | UsageError:
        """Of one chunk; an error is returned, as one raised in a worker arrives as a traceback."""
        chunk = self.chunks[batch]
        numbers = chunk[self.share.of(len(chunk))].tolist()
        try:
            images = [self.split.image(n, self.draw and self.draw(n)) for n in numbers]
        except UsageError as error:
            return error
        labels = self.split.listing.labels[self.split.chosen[numbers]]
        pixels = np.zeros((len(images), *self.split.image_shape), np.uint8)
        for place, image in enumerate(images):
            pixels[place] = image
        return torch.from_numpy(pixels), torch.from_numpy(labels)
