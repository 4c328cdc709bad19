"""Images that are held in memory: batches, augmentation, their mean and deviation."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch

from dsr_kernels.distribution import share_out
from dsr_kernels.training.data.streams import WHOLE, Batches, Draw, Share, stream
from dsr_kernels.training.recipe.schema import Data

SPLIT_SEED = 20190515  # fixed, so that runs with different seeds are compared on the same images


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

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        return moments(self.images)

    def take(self, index: torch.Tensor) -> TensorSplit:
        return TensorSplit(self.images[index], self.labels[index], self.classes)

    def fingerprint(self) -> str:
        sums = [zlib.crc32(part.contiguous().numpy()) for part in (self.images, self.labels)]
        return f"crc {sums[0]:08x} {sums[1]:08x}"

    def train_batches(
        self, settings: Data, chunks: torch.Tensor, first: int, draw: Draw, share: Share = WHOLE
    ) -> Batches:
        """As `Split` says; `draw` is called with the number of each batch."""
        for batch, chunk in enumerate(chunks, start=first):
            own = chunk[share.of(len(chunk))]
            images = self.images[own]
            if settings.augment != "none":
                flip = settings.augment == "crop_flip"
                images = crop_flip(images, settings.pad, flip, draw(batch), len(chunk), share)
            yield images, self.labels[own]

    def eval_batches(self, batch_size: int, share: Share = WHOLE) -> Batches:
        for begin in range(0, len(self), batch_size):
            own = share.of(min(batch_size, len(self) - begin))
            part = slice(begin + own.start, begin + own.stop)
            yield self.images[part], self.labels[part]


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
    images: torch.Tensor,
    pad: int,
    flip: bool,
    generator: torch.Generator,
    batch: int | None = None,
    share: Share = WHOLE,
) -> torch.Tensor:
    """Pads the images by `pad` with reflections and crops each at random to its old size.

    With `flip`, half of the images are mirrored. All of it is one gather for the batch. It equals
    ``F.pad(image, [pad] * 4, mode='reflect')[:, y : y + H, x : x + W]`` for each image. The images
    are the `share` of a batch of that many: numbers are drawn for all of it, so that an image meets
    the same ones in any share.
    """
    count, channels, height, width = images.shape
    drawn, own = batch or count, share.of(batch or count)
    offsets = torch.randint(-pad, pad + 1, (2, drawn, 1), generator=generator)[:, own]
    rows = _reflect(torch.arange(height) + offsets[0], height)  # [B, H]
    columns = _reflect(torch.arange(width) + offsets[1], width)  # [B, W]
    if flip:
        mirrored = torch.rand(drawn, 1, generator=generator)[own] < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count).view(-1, 1, 1, 1)
    channel = torch.arange(channels).view(1, -1, 1, 1)
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    return (size - 1) - ((size - 1) - index.abs()).abs()
