"""Tiny data sets for the tests, in the formats of MNIST, CIFAR-10 and ImageNet.

An ImageNet has the same random JPEGs in folders of classes and in tar shards.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from dsr_kernels.training.data import readers


def jpeg(rng: np.random.Generator) -> bytes:
    """A picture of soft random blobs, 40 to 90 pixels a side."""
    width, height = rng.integers(40, 91, 2)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((int(width), int(height))).save(buffer, "JPEG")
    return buffer.getvalue()


def pictures(classes: int, train: int, val: int) -> dict[str, list[tuple[str, int, bytes]]]:
    """(file name, label, JPEG) of `train` and `val` images of each class, by part."""
    rng = np.random.default_rng(0)
    return {
        part: [(f"{label:02}_{i}", label, jpeg(rng)) for label in range(classes) for i in range(n)]
        for part, n in (("train", train), ("val", val))
    }


def write_folders(root: Path, classes: int = 12, train: int = 3, val: int = 1) -> Path:
    for part, images in pictures(classes, train, val).items():
        for name, label, raw in images:
            folder = root / part / f"n{label:02}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.JPEG").write_bytes(raw)
    return root


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_shards(root: Path, classes: int = 12, train: int = 3, val: int = 1) -> Path:
    """Ten images a shard, in the order of the folders; labels before and behind their images."""
    root.mkdir(parents=True, exist_ok=True)
    for part, images in pictures(classes, train, val).items():
        for begin in range(0, len(images), 10):
            with tarfile.open(root / f"{part}-{begin // 10:03}.tar", "w") as archive:
                for number, (name, label, raw) in enumerate(images[begin : begin + 10]):
                    members = [(f"{name}.jpg", raw), (f"{name}.cls", str(label).encode())]
                    for member in members if number % 2 else members[::-1]:
                        add(archive, *member)
    return root


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_idx_set(
    folder: Path, compress: bool, train: int = 40, test: int = 20
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for part, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            raw = idx(array)
            name = f"{part}-{kind}" + (".gz" if compress else "")
            (folder / name).write_bytes(gzip.compress(raw) if compress else raw)
            written[f"{part}-{kind}"] = array
    return written


def write_cifar(folder: Path, per_batch: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    folder = folder / readers.CIFAR_FOLDER
    folder.mkdir(parents=True)
    images = []
    for name in readers.CIFAR_TRAIN + readers.CIFAR_TEST:
        pixels = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        batch = {b"data": pixels, b"labels": [i % 10 for i in range(per_batch)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        images.append(pixels)
    return images
