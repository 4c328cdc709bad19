"""Tiny ImageNets for the tests: the same random JPEGs in folders of classes and in tar shards."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


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
