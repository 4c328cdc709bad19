"""Reads the formats that data sets come in: IDX (gzipped or not) and CIFAR's python batches."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dsr_kernels.errors import UsageError, require

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
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR_FOLDER, CIFAR_ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
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
    if side:
        images = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    return images.round().to(torch.uint8).numpy(), loaded.target.astype(np.uint8)


def idx_set(name: str, data_dir: Path | None) -> tuple[Arrays, Arrays]:
    """The training and test part of MNIST or Fashion-MNIST, from four IDX files in one folder."""
    looked = folders(name, data_dir)
    for folder in looked:
        files = [_either(folder, stem) for stem in IDX_FILES]
        if all(files):
            return _idx_pair(files[0], files[1]), _idx_pair(files[2], files[3])
        if any(files):
            raise UsageError(f"data set {name}: {folder} holds only some of the four IDX files")
    raise missing(name, looked)


def _either(folder: Path, stem: str) -> Path | None:
    for path in (folder / f"{stem}.gz", folder / stem):
        if path.is_file():
            return path
    return None


def _idx_pair(images_path: Path, labels_path: Path) -> Arrays:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
        raise damaged(
            images_path,
            f"holds images {images.shape} for labels {labels.shape} in {labels_path.name}",
        )
    if labels.max() > 9:
        raise damaged(labels_path, f"holds the label {labels.max()}, expected 0 to 9")
    return images[:, None], labels


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes.

    The file holds 00 00 08 RANK, then RANK big-endian sizes, then the data.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, f"cannot be read ({error})") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or not 1 <= raw[3] <= 4:
        raise damaged(path, f"does not start as an IDX file of bytes does (got {raw[:4].hex(' ')})")
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise damaged(path, f"holds {len(raw)} bytes, its header alone has {header}")
    shape = tuple(np.frombuffer(raw[4:header], ">u4").tolist())
    expected = header + math.prod(shape)
    if len(raw) != expected:
        raise damaged(path, f"holds {len(raw)} bytes, expected {expected} for shape {shape}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy()


class _BatchUnpickler(pickle.Unpickler):
    """Unpickles plain containers and arrays, as CIFAR's batches hold them; refuses all else."""

    ALLOWED = frozenset({("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")})

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module.endswith("core.multiarray"):
            return np.zeros(0).__reduce__()[0]  # wherever this numpy keeps it
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


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
    return path, path.read_bytes()


def _cifar_archive(path: Path) -> tuple[Arrays, Arrays]:
    try:
        with tarfile.open(path) as archive:

            def read(name: str) -> tuple[str, bytes]:
                member = archive.extractfile(f"{CIFAR_FOLDER}/{name}")
                return f"{path}:{name}", member.read()

            return _cifar_parts(read)
    except (tarfile.TarError, OSError, EOFError, KeyError, zlib.error) as error:
        raise damaged(path, f"cannot be read ({error})") from None


def _cifar_parts(read: Callable[[str], tuple[Path | str, bytes]]) -> tuple[Arrays, Arrays]:
    """Both parts; `read` gives the name and the content of a batch."""
    parts = []
    for names in (CIFAR_TRAIN, CIFAR_TEST):
        batches = [_cifar_batch(*read(name)) for name in names]
        parts.append(tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))
    return parts[0], parts[1]


def _cifar_batch(path: Path | str, raw: bytes) -> Arrays:
    try:
        batch = _BatchUnpickler(io.BytesIO(raw), encoding="bytes").load()
        images, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise damaged(path, f"is not one of CIFAR's python batches ({error})") from None
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072:
        raise damaged(path, f"holds data {images.dtype} {images.shape}, expected uint8 (N, 3072)")
    if labels.shape != images.shape[:1] or not len(labels) or labels.min() < 0 or labels.max() > 9:
        raise damaged(
            path, f"holds labels {labels.shape} for {len(images)} images, expected 0 to 9"
        )
    return images.reshape(-1, 3, 32, 32), labels.astype(np.uint8)


READERS = {
    "fashion_mnist": lambda folder: idx_set("fashion_mnist", folder),
    "mnist": lambda folder: idx_set("mnist", folder),
    "cifar10": cifar10,
}
