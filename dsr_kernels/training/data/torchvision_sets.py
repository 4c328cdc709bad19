"""Data sets of torchvision: held in memory where they are arrays, else read picture by picture."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsr_kernels.choices import unknown
from dsr_kernels.errors import UsageError, require
from dsr_kernels.training.data import images
from dsr_kernels.training.recipe import references
from dsr_kernels.training.recipe.schema import Data

KEY = "data.name"
ROOT = Path("data/torchvision")
TESTS = ("test", "val")  # names of the part to test on, the first that there is


@dataclass(frozen=True)
class Found:
    """A data set's training and test part: arrays (images uint8 [N, C, H, W], labels [N]) where it
    is in memory, else Datasets of (input, label).
    """

    parts: tuple[Any, Any]
    classes: int
    in_memory: bool


def find(settings: Data, data_dir: Path | None) -> Found:
    """The data set that the recipe names. Raises UsageError where it cannot be made."""
    datasets = require("torchvision.datasets", f"data set {settings.name}", "models")
    name = settings.name.partition(":")[2]
    if name not in datasets.__all__:
        raise UsageError(f"recipe: {KEY}: torchvision has no {unknown(name, datasets.__all__)}")
    kind = getattr(datasets, name)
    taken = _taken(kind)
    if "train" in taken:  # EMNIST has a split beside it, which says what is written
        ways = [[{"train": True}], [{"train": False}]]
    elif "split" in taken:
        ways = [[{"split": "train"}], [{"split": part} for part in TESTS]]
    else:
        raise UsageError(
            f"recipe: {KEY}: torchvision's {name} has no parts to train and to test on; make them "
            "in a function of your own"
        )
    _check_arguments(settings, ways[0][0])
    given = {"root": str(data_dir or ROOT)} | dict(settings.arguments)
    train, test = (_first(kind, given, way) for way in ways)
    arrays = _arrays(train), _arrays(test)
    if arrays[0] is not None and arrays[1] is not None and not settings.image_size:
        labels = np.concatenate([arrays[0][1], arrays[1][1]])
        classes = settings.classes or int(labels.max()) + 1
        if labels.min() < 0 or labels.max() >= classes:
            raise UsageError(
                f"data set {settings.name}: expected labels from 0 to {classes - 1}, got "
                f"{labels.min()} to {labels.max()}"
            )
        return Found(arrays, classes, True)
    side = settings.image_size or images.SIDE
    randomly = settings.augment == images.AUGMENT
    pictures = Pictures(train, settings.name, side, randomly)
    return Found((pictures, Pictures(test, settings.name, side, False)), settings.classes, False)


def _taken(kind: type) -> set[str]:
    """Names of the arguments of a class, with those that it passes on to the class above."""
    taken: set[str] = set()
    for one in kind.__mro__:
        if "__init__" in vars(one):
            parameters = inspect.signature(one.__init__).parameters.values()
            taken |= {parameter.name for parameter in parameters}
            if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters):
                break
    return taken


def _check_arguments(settings: Data, part: dict[str, Any]) -> None:
    """Raises UsageError for arguments that are not the recipe's to give."""
    for key in {"root", *part} & set(settings.arguments):
        why = "--data-dir names the folder" if key == "root" else "both parts are read"
        raise UsageError(f"recipe: data.arguments: {key} is set by the run: {why}; leave it out")


def _first(kind: Callable[..., Any], given: dict[str, Any], ways: list[dict[str, Any]]) -> Any:
    """The part by the first of the ways to ask for it that there is."""
    for way in ways[:-1]:
        try:
            return kind(**way, **given)
        except ValueError:  # it has no part of that name
            continue
    return references.call(kind, KEY, {**ways[-1], **given}, {})


def _arrays(dataset: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Images and labels of a data set that holds all of them in memory as bytes."""
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    data = getattr(dataset, "data", None)
    if not isinstance(data, (np.ndarray, torch.Tensor)) or labels is None:
        return None
    pixels, numbers = np.asarray(data), np.asarray(labels)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or numbers.shape != pixels.shape[:1]:
        return None
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[3] in (1, 3):
        pixels = pixels.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels), numbers.astype(np.int64)


@dataclass(frozen=True)
class Pictures:
    """A data set of torchvision as inputs: crops [3, side, side], normalised as ImageNet's."""

    dataset: Any
    name: str
    side: int
    randomly: bool

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def classes(self) -> Any:
        return getattr(self.dataset, "classes", None)

    @property
    def targets(self) -> Any:
        return getattr(self.dataset, "targets", getattr(self.dataset, "_labels", None))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture, label = self.dataset[index]
        picture = picture.convert("RGB")
        if self.randomly:  # its generator is seeded for each item
            pixels = images.random_crop(picture, self.side, torch.default_generator)
        else:
            pixels = np.asarray(images.central_crop(picture, self.side))
        mean, std = (part.view(3, 1, 1) for part in images.moments())
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        return (image.float() - mean) / std, int(label)
