"""Models and data sets as a user would write them, for recipes that name them by reference."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

CLASSES = 3


class Points(Dataset):
    """Noisy points around a centre for each class; each kind of random numbers is drawn from."""

    def __init__(self, count: int, seed: int, shape: tuple[int, ...] = (2, 6, 6)) -> None:
        drawn = torch.Generator().manual_seed(seed)
        self.targets = torch.randint(CLASSES, (count,), generator=drawn).tolist()
        self.centers = torch.randn(CLASSES, *shape, generator=torch.Generator().manual_seed(5))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        label = self.targets[index]
        noise = 0.1 * torch.randn(self.centers[label].shape) + random.random() + np.random.rand()
        return self.centers[label] + noise, label


class Awkward(Points):
    """One whose item 7 is `wrong`, or cannot be read where that is an error."""

    def __init__(self, wrong: Any) -> None:
        super().__init__(40, 1)
        self.wrong = wrong

    def __getitem__(self, index: int) -> Any:
        if index == 7 and isinstance(self.wrong, Exception):
            raise self.wrong
        return self.wrong if index == 7 else super().__getitem__(index)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(Points(3, 0))


def points(count: int = 80, shape: list[int] = (2, 6, 6)) -> tuple[Points, Points]:
    return Points(count, 1, tuple(shape)), Points(30, 2, tuple(shape))


def three_parts() -> tuple[Points, Points, Points]:
    return Points(80, 1), Points(20, 3), Points(30, 2)


def awkward(kind: str) -> Any:
    tensor = torch.zeros(2, 6, 6)
    wrong = {
        "error": OSError("the disk said no"),
        "label": (tensor, 3),
        "half label": (tensor, 0.5),
        "bytes": (tensor.byte(), 0),
        "shape": (torch.zeros(2, 5, 6), 0),
        "alone": tensor,
    }
    if kind in wrong:
        return Awkward(wrong[kind]), Points(30, 2)
    return {"stream": (Stream(), Stream()), "one": Points(3, 1), "empty": ([], [])}[kind]


def unlabelled() -> tuple[Points, Points]:
    parts = points()
    for part in parts:
        part.answers = part.targets
        part.__class__ = Hidden
        del part.targets
    return parts


class Hidden(Points):
    """One that keeps its labels to itself."""

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.centers[self.answers[index]], self.answers[index]


def net(num_classes: int, in_channels: int, width: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.LazyLinear(num_classes),
    )


def perceptron(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.LazyLinear(12), nn.ReLU(), nn.Linear(12, num_classes))


class WithLogits(nn.Module):
    """A model that gives an object, as those of transformers do."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

    def forward(self, x: torch.Tensor) -> Any:
        return type("Output", (), {"logits": self.net(x)})


class TwoHeads(nn.Module):
    """A model that gives a second output while it trains."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

    def forward(self, x: torch.Tensor) -> Any:
        return (self.net(x), self.net(x)) if self.training else self.net(x)


def no_module() -> int:
    return 3


def broken() -> nn.Module:
    raise ZeroDivisionError("as it is")


def wrong_size() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(7))


def narrow() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(5, CLASSES))
