"""Data that must be refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsr_kernels.errors import UsageError
from dsr_kernels.training.data import sets
from dsr_kernels.training.recipe.schema import Data

GIB = 2**30


def expect(message: str, name: str, folder: Path) -> None:
    """Loading the data set and reading its training images raises UsageError, of one line."""
    augment = "resized_crop_flip" if name == "imagenet" else "none"
    chosen = Data(name=name, validation=0, augment=augment, workers=0)
    with pytest.raises(UsageError, match=message) as caught:
        data = sets.load(chosen, folder)
        list(data.train.eval_batches(64))
    assert "\n" not in str(caught.value)
