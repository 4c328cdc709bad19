"""Arguments of torchvision's data sets, seen through stand-ins with their signatures."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

from dsr_kernels.errors import UsageError
from dsr_kernels.training.data import sets
from dsr_kernels.training.recipe.schema import Data


class MNIST:
    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        self.root, count = root, 20 if train else 10
        self.data = np.zeros((count, 8, 8), np.uint8)
        self.targets = np.arange(count) % 3


class EMNIST(MNIST):
    def __init__(self, root: str, split: str, **kwargs: Any) -> None:
        if split not in ("letters", "digits"):
            raise ValueError(f"Unknown value {split!r} for argument split")
        super().__init__(root, **kwargs)
        self.targets = self.targets + (split == "letters")


class SVHN:
    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        if split not in ("train", "test", "extra"):
            raise ValueError(f"Unknown value {split!r} for argument split")
        count = 20 if split == "train" else 10
        self.data = np.zeros((count, 3, 8, 8), np.uint8)
        self.labels = np.arange(count) % 3


KINDS = {kind.__name__: kind for kind in (MNIST, EMNIST, SVHN)}


@pytest.fixture(autouse=True)
def torchvision(monkeypatch):
    datasets = types.ModuleType("torchvision.datasets")
    vars(datasets).update(KINDS, __all__=list(KINDS))
    package = types.ModuleType("torchvision")
    package.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


def load(name: str, **arguments: Any) -> sets.DataSet:
    return sets.load(Data(name=f"torchvision:{name}", validation=0, arguments=arguments))


@pytest.mark.parametrize(
    "name, arguments, classes",
    [
        ("MNIST", {"download": True}, 3),
        ("SVHN", {}, 3),
        ("EMNIST", {"split": "letters"}, 4),
        ("EMNIST", {"split": "digits", "download": True}, 3),
    ],
)
def test_both_parts_are_read(name, arguments, classes):
    data = load(name, **arguments)
    assert (len(data.train), len(data.test), data.classes) == (20, 10, classes)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("MNIST", {"train": False}, "arguments: train is set by the run: both parts are read"),
        ("SVHN", {"split": "extra"}, "arguments: split is set by the run: both parts are read"),
        ("MNIST", {"root": "x"}, "arguments: root is set by the run: --data-dir names the folder"),
        ("EMNIST", {"split": "digits", "train": True}, "arguments: train is set by the run"),
        ("EMNIST", {}, "missing a required argument: 'split'; set data.arguments"),
        ("MNIST", {"split": "train"}, "unexpected keyword argument 'split'; set data.arguments"),
    ],
)
def test_arguments_that_are_not_the_recipes_are_refused(name, arguments, message):
    with pytest.raises(UsageError, match=message):
        load(name, **arguments)
