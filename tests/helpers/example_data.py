"""Tiny data for the scripts of examples/: in the form of CIFAR-10, and folders of images."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from PIL import Image


def write_cifar10(folder: Path, images: int = 16) -> Path:
    """The six files of cifar-10-batches-py, of `images` random images each."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = random.integers(0, 256, (images, 3072), dtype=np.uint8)
        labels = random.integers(0, 10, images).tolist()
        (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}))
    return folder


def write_images(folder: Path, images: int = 8, size: int = 40) -> Path:
    """train and val, two classes each, of `images` random images."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("cat", "dog"):
            inside = folder / part / kind
            inside.mkdir(parents=True)
            for i in range(images):
                pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(inside / f"{i}.jpg")
    return folder
