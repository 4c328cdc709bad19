"""Reads the formats that data sets come in: IDX (gzipped or not) and CIFAR's python batches."""

from __future__ import annotations

import gzip
import math
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dsr_kernels.errors import UsageError, require
from dsr_kernels.training.data import pickled
from dsr_kernels.training.data.limits import MOST_FILE_BYTES, check_memory

Arrays = tuple[np.ndarray, np.ndarray]  # uint8 images [N, C, H, W], uint8 labels [N]

SYSTEM = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
ADVICE = {
    "fashion_mnist": "install the Debian package dataset-fashion-mnist, or name the folder of the "
    "four IDX files with --data-dir",
    "mnist": "put the four IDX files of Yann LeCun's MNIST page (train-images-idx3-ubyte.gz and "
    "the like) into one of these, or name their folder with --data-dir",
    "cifar10": "put cifar-10-python.tar.gz (CIFAR-10 python version) from the CIFAR-10 page of the "
    "University of Toronto, or the folder cifar-10-batches-py from it, into one of these, or name "
    "its folder with --data-dir",
    "imagenet": "expected train/CLASS/*.jpg and val/CLASS/*.jpg, or train-*.tar and val-*.tar with "
    "members KEY.jpg and KEY.cls, in one of these; name their folder with --data-dir",
}
ADVICE["folder"] = ADVICE["imagenet"]
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR_FOLDER, CIFAR_ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
CIFAR_CLASSES = 10
MOST_ARCHIVE_BYTES = 2**30  # of CIFAR's archive, unzipped: it has 186 MB
MOST_PACKED = 1040  # bytes in one zipped byte: deflate's utmost is 1,032
CIFAR_TRAIN, CIFAR_TEST = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]


def folders(name: str, data_dir: Path | None) -> list[Path]:
    """The folders in which the files of a data set may lie, in the order to look."""
    dashed = name.replace("_", "-")
    if data_dir is not None:
        return [data_dir, data_dir / dashed]
    found = [Path("data") / dashed, Path.home() / ".local/share/dsr_kernels" / dashed]
    return found + ([SYSTEM[name]] if name in SYSTEM else [])


def missing(name: str, looked: list[Path]) -> UsageError:
    """The error for a data set that is in none of the folders `looked`."""
    places = ", ".join(str(folder) for folder in looked)
    return UsageError(f"data set {name} not found (looked in {places}): {ADVICE[name]}")


def damaged(path: Path | str, reason: str) -> UsageError:
    """The error for a file that is not what it should be."""
    return UsageError(f"{path}: {reason}; the file is damaged or not what its name says")


def digits(side: int) -> Arrays:
    """scikit-learn's 1,797 digits of 8x8, their values 0..16 scaled to 0..255.

    They are upsampled bilinearly to `side`; 0 leaves them as they are.
    """
    import torch
    from torch.nn import functional as F

    loaded = require("sklearn.datasets", "data set digits").load_digits()
    images = torch.from_numpy(loaded.images).float()[:, None] * (255.0 / 16.0)
    size = (side, side) if side else images.shape[2:]
    what = f"recipe: data.image_size: {len(images)} digits of {side}x{side}"
    check_memory(len(images) * math.prod(size), what, "expected a smaller side")
    large = torch.empty(len(images), 1, *size, dtype=torch.uint8)
    for part, target in zip(images.split(32), large.split(32), strict=True):
        if side:  # in floats, which take four times the room
            part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        target.copy_(part.round())
    return large.numpy(), loaded.target.astype(np.uint8)


def idx_set(name: str, data_dir: Path | None) -> tuple[Arrays, Arrays]:
    """The training and test part of MNIST or Fashion-MNIST, from four IDX files in one folder."""
    looked = folders(name, data_dir)
    for folder in looked:
        files = [_either(folder, stem) for stem in IDX_FILES]
        if all(files):
            train, test = _idx_pair(files[0], files[1]), _idx_pair(files[2], files[3])
            if train[0].shape[1:] != test[0].shape[1:]:
                sizes = (f"{images.shape[2]}x{images.shape[3]}" for images, _ in (train, test))
                raise damaged(
                    files[2], "holds images of {1}, those to train on are {0}".format(*sizes)
                )
            return train, test
        if any(files):
            raise UsageError(f"data set {name}: {folder} holds only some of the four IDX files")
    raise missing(name, looked)


def _either(folder: Path, stem: str) -> Path | None:
    for path in (folder / f"{stem}.gz", folder / stem):
        if path.is_file():
            return path
    return None


def _idx_pair(images_path: Path, labels_path: Path) -> Arrays:
    labels = read_idx(labels_path)  # the smaller one first
    images = read_idx(images_path)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not images.size:
        raise damaged(
            images_path,
            f"holds images {images.shape} for labels {labels.shape} in {labels_path.name}",
        )
    if labels.max() > 9:
        raise damaged(labels_path, f"holds the label {labels.max()}, expected 0 to 9")
    return images[:, None], labels


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes.

    The file holds 00 00 08 RANK, then RANK big-endian sizes, then the data. It is read as far as
    they say and one byte more, however much a compressed file holds.
    """
    try:
        with _open(path) as file:
            return _read_idx(path, file)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, f"cannot be read ({error})") from None


def _open(path: Path) -> BinaryIO:
    """The file's bytes, unzipped where they are zipped."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else path.open("rb")


def _read_idx(path: Path, file: BinaryIO) -> np.ndarray:
    start = file.read(4)
    if len(start) < 4 or start[:3] != b"\0\0\x08" or not 1 <= start[3] <= 4:
        raise damaged(path, f"does not start as an IDX file of bytes does (got {start.hex(' ')})")
    header = 4 + 4 * start[3]
    sizes = file.read(header - 4)
    if len(sizes) < header - 4:
        raise damaged(path, f"holds {4 + len(sizes)} bytes, its header alone has {header}")
    shape = tuple(np.frombuffer(sizes, ">u4").tolist())
    count, packed = math.prod(shape), path.stat().st_size
    if count > packed * MOST_PACKED:
        raise damaged(path, f"holds {packed} bytes, too few for shape {shape}")
    check_memory(count, f"{path}: an array of shape {shape}", "the file is damaged, or too large")
    array = np.empty(count, np.uint8)
    rest = memoryview(array)
    while rest and (got := file.readinto(rest)):
        rest = rest[got:]
    extra = len(file.read(1))
    if rest or extra:
        found = f"{header + count - len(rest)} bytes" if rest else "more bytes"
        raise damaged(path, f"holds {found}, expected {header + count} for shape {shape}")
    return array.reshape(shape)


def cifar10(data_dir: Path | None) -> tuple[Arrays, Arrays]:
    """The training and test part of CIFAR-10, from the folder of batches or from the archive."""
    looked = folders("cifar10", data_dir)
    for folder in looked:
        for batches in (folder, folder / CIFAR_FOLDER):
            if (batches / CIFAR_TEST[0]).is_file():
                return _cifar_parts(lambda name, batches=batches: _read_file(batches / name))
        if (folder / CIFAR_ARCHIVE).is_file():
            return _cifar_archive(folder / CIFAR_ARCHIVE)
    raise missing("cifar10", looked)


def _read_file(path: Path) -> tuple[Path, bytes]:
    if not path.is_file():
        raise UsageError(f"data set cifar10: {path} is missing beside the other batches")
    check_size(path, path.stat().st_size)
    try:
        return path, path.read_bytes()
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror})") from None


def check_size(where: Path | str, size: int, most: int = MOST_FILE_BYTES) -> None:
    """Raises UsageError for a file of more bytes than any of its kind has."""
    if not 0 <= size <= most:
        raise damaged(where, f"has {size:,} bytes, expected at most {most:,}")


class BoundedReads:
    """A file for `tarfile` that refuses to read much at once, as a header may ask for any size."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MOST_FILE_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


def _cifar_archive(path: Path) -> tuple[Arrays, Arrays]:
    try:
        with _open(path) as file, tarfile.open(fileobj=BoundedReads(file), mode="r:") as archive:
            members = _members(path, archive)

            def read(name: str) -> tuple[str, bytes]:
                where, member = f"{path}:{name}", members.get(f"{CIFAR_FOLDER}/{name}")
                if member is None:
                    raise damaged(path, f"holds no {CIFAR_FOLDER}/{name}")
                if not member.isreg() or member.sparse is not None:
                    raise damaged(where, "is not a plain file but a folder, a link or the like")
                return where, archive.extractfile(member).read()

            return _cifar_parts(read)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise damaged(path, f"cannot be read ({error})") from None


def _members(path: Path, archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """The members of CIFAR's archive by name, whose sizes are bounded before one is unzipped."""
    members, total = {}, 0
    for member in archive:
        check_size(f"{path}:{member.name}", member.size)
        total += member.size + tarfile.BLOCKSIZE
        check_size(path, total, MOST_ARCHIVE_BYTES)
        members[member.name] = member
    return members


def _cifar_parts(read: Callable[[str], tuple[Path | str, bytes]]) -> tuple[Arrays, Arrays]:
    """Both parts; `read` gives the name and the content of a batch."""
    parts = []
    for names in (CIFAR_TRAIN, CIFAR_TEST):
        batches = [_cifar_batch(*read(name)) for name in names]
        parts.append(tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))
    return parts[0], parts[1]


def _cifar_batch(path: Path | str, raw: bytes) -> Arrays:
    try:
        batch = pickled.load(raw)
        images, labels = (
            pickled.array_of(part) if type(part) is pickled.Array else part
            for part in (batch[b"data"], batch[b"labels"])
        )
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise damaged(path, f"is not one of CIFAR's python batches ({error})") from None
    if type(images) is not np.ndarray:
        raise damaged(path, f"holds data of type {type(images).__name__}, expected an array")
    if type(labels) is list and all(type(label) is int for label in labels):
        labels = np.array([label if 0 <= label < CIFAR_CLASSES else -1 for label in labels], int)
    if type(labels) is not np.ndarray or labels.dtype.kind not in "iu":
        raise damaged(path, "holds labels that are not whole numbers")
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072:
        raise damaged(path, f"holds data {images.dtype} {images.shape}, expected uint8 (N, 3072)")
    if labels.shape != images.shape[:1] or not len(labels) or not _within(labels):
        raise damaged(
            path,
            f"holds labels {labels.shape} for {len(images)} images, expected a number of 0 to "
            f"{CIFAR_CLASSES - 1} for each",
        )
    return images.reshape(-1, 3, 32, 32), labels.astype(np.uint8)


def _within(labels: np.ndarray) -> bool:
    return bool(labels.min() >= 0 and labels.max() < CIFAR_CLASSES)


READERS = {
    "fashion_mnist": lambda folder: idx_set("fashion_mnist", folder),
    "mnist": lambda folder: idx_set("mnist", folder),
    "cifar10": cifar10,
}
