"""Where the images of a large data set lie: in folders of classes, or in tar shards.

A listing knows the name, size and label of each image, and reads any of them alone. It keeps
arrays, not objects, because worker processes share the memory of arrays.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsr_kernels.errors import UsageError
from dsr_kernels.training.data import readers

MOST_LABEL_BYTES = 1024  # of a member KEY.cls
ENDINGS = ("jpg", "jpeg", "png")


@dataclass(frozen=True)
class Listing:
    """All images of one part of a data set."""

    root: Path
    names: np.ndarray  # [N] bytes; a file in a folder: below root; in a shard: the member's
    sizes: np.ndarray  # [N] int64, bytes
    labels: np.ndarray  # [N] int64
    shards: tuple[str, ...] = ()  # file names below root; () where each image is a file
    shard: np.ndarray | None = None  # [N] int32, into shards
    offsets: np.ndarray | None = None  # [N] int64, where in its shard an image begins

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, index: int) -> str:
        """The image's file, for a message."""
        name = os.fsdecode(self.names[index])
        if self.shard is None:
            return str(self.root / name)
        return f"{self.root / self.shards[self.shard[index]]}:{name}"

    def read(self, index: int) -> bytes:
        """The content of the image file. Raises UsageError, with its name, if it cannot be read."""
        path, offset = self.root / os.fsdecode(self.names[index]), 0
        if self.shard is not None:
            path = self.root / self.shards[self.shard[index]]
            offset = int(self.offsets[index])
        size = int(self.sizes[index])
        try:
            with open(path, "rb", opener=_open_plain) as file:
                file.seek(offset)
                raw = file.read(size)
        except OSError as error:
            raise UsageError(f"{self.where(index)}: cannot be read ({error.strerror})") from None
        if len(raw) != size:
            raise readers.damaged(self.where(index), f"holds {len(raw)} bytes, expected {size}")
        return raw

    def fingerprint(self, chosen: np.ndarray) -> str:
        """A hash of the names, sizes and labels of the images `chosen`, in this order."""
        digest = hashlib.sha256()
        for array in (self.names, self.sizes, self.labels):
            digest.update(np.ascontiguousarray(array[chosen]).tobytes())
        return digest.hexdigest()[:16]


def find(name: str, data_dir: Path | None) -> tuple[Listing, Listing]:
    """The training and test images of ImageNet or a folder like it, in the layout that is found.

    The test images are its `val` part. Raises UsageError where parts are missing.
    """
    looked = readers.folders(name, data_dir)
    for folder in looked:
        for train, val, listing in (
            ("train", "val", _folders),
            ("train-*.tar", "val-*.tar", _shards),
        ):
            found = [sorted(folder.glob(part)) for part in (train, val)]
            if all(found):
                return listing(folder, *found)
            if any(found):
                has, lacks = (train, val) if found[0] else (val, train)
                raise UsageError(f"data set {name}: {folder} holds {has} but no {lacks}")
    raise readers.missing(name, looked)


def _folders(root: Path, train: list[Path], val: list[Path]) -> tuple[Listing, Listing]:
    """ROOT/train/CLASS/* and ROOT/val/CLASS/*; a label is the place of a class by name."""
    classes = sorted(entry.name for entry in os.scandir(train[0]) if entry.is_dir())
    return tuple(_folder(part[0], classes) for part in (train, val))


def _folder(root: Path, classes: list[str]) -> Listing:
    names, sizes, labels = [], [], []
    own = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not own:
        raise UsageError(f"{root} holds no folders of classes, expected {root / 'CLASS'}/*.jpg")
    for kind in own:
        if kind not in classes:
            raise UsageError(
                f"{root / kind}: expected one of the {len(classes)} classes with training images, "
                f"{classes[0]} to {classes[-1]}"
            )
        before = len(names)
        for path, size in _images(root / kind):
            names.append(os.fsencode(os.path.relpath(path, root)))
            sizes.append(size)
        if len(names) == before:
            raise UsageError(f"{root / kind} holds no images ({', '.join(ENDINGS)})")
        labels += [classes.index(kind)] * (len(names) - before)
    return Listing(root, np.array(names), np.array(sizes, np.int64), np.array(labels, np.int64))


def _images(folder: Path) -> Iterator[tuple[str, int]]:
    """(path, size in bytes) of the images in and below a folder, sorted by name.

    Raises UsageError for an image that is no plain file and for a link to a folder around itself.
    """
    waiting = _inside(folder, frozenset())
    while waiting:
        entry, around = waiting.pop()
        if entry.is_dir():
            waiting += _inside(entry.path, around)
        elif entry.name.lower().rpartition(".")[2] in ENDINGS:
            if not entry.is_file():
                raise UsageError(f"{entry.path}: expected an image, got no plain file")
            size = entry.stat().st_size
            readers.check_size(entry.path, size)
            yield entry.path, size


def _inside(
    folder: str | Path, around: frozenset[str]
) -> list[tuple[os.DirEntry[str], frozenset[str]]]:
    """What lies in a folder, the last name first, with the folders around it: `around` and it."""
    real = os.path.realpath(folder)
    if real in around:
        raise UsageError(f"{folder}: a link to a folder that it lies in")
    around |= {real}
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
    return [(entry, around) for entry in entries]


def _shards(root: Path, train: list[Path], val: list[Path]) -> tuple[Listing, Listing]:
    """ROOT/train-*.tar and ROOT/val-*.tar, whose members KEY.jpg and KEY.cls belong together.

    This is the convention of webdataset.
    """
    parts = tuple(_shard_listing(root, paths) for paths in (train, val))
    classes = int(parts[0].labels.max()) + 1
    if classes > len(parts[0]):
        largest = int(parts[0].labels.argmax())
        raise UsageError(
            f"{parts[0].where(largest)} has the label {classes - 1}, expected less than the number "
            f"of training images, {len(parts[0])}"
        )
    wrong = (parts[1].labels >= classes).nonzero()[0]
    if len(wrong):
        raise UsageError(
            f"{parts[1].where(wrong[0])} has the label {parts[1].labels[wrong[0]]}, expected 0 to "
            f"{classes - 1} as in the training shards"
        )
    return parts


def _shard_listing(root: Path, paths: list[Path]) -> Listing:
    parts = [_members(path) for path in paths]
    names, sizes, offsets, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    shard = np.repeat(np.arange(len(paths), dtype=np.int32), [len(part[0]) for part in parts])
    return Listing(root, names, sizes, labels, tuple(p.name for p in paths), shard, offsets)


def _members(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Names, sizes, offsets and labels of the images in a shard, from its members' headers."""
    images, labels = {}, {}
    try:
        with (
            path.open("rb") as file,
            tarfile.open(fileobj=readers.BoundedReads(file), mode="r:") as archive,
        ):
            for member in archive:
                found = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]*)", member.name)
                if not member.isfile() or member.sparse is not None or not found:
                    continue
                key, ending = found[1], found[2].lower()
                if ending == "cls":
                    labels[key] = _label(path, archive, member)
                elif ending in ENDINGS:
                    readers.check_size(f"{path}:{member.name}", member.size)
                    if key in images:
                        raise UsageError(f"{path} holds two images of the key {key}")
                    images[key] = os.fsencode(member.name), member.size, member.offset_data
                archive.members.clear()  # or tarfile keeps every header
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise readers.damaged(path, f"cannot be read ({error})") from None
    if not images:
        raise UsageError(f"{path} holds no images (KEY.jpg, KEY.jpeg or KEY.png with KEY.cls)")
    for key in images.keys() ^ labels.keys():
        has, lacks = ("an image", "label .cls") if key in images else ("a label", "image")
        raise UsageError(f"{path} holds {has} of the key {key} but no {lacks}")
    names, sizes, offsets = zip(*images.values(), strict=True)
    numbers = (sizes, offsets, [labels[key] for key in images])
    return (np.array(names), *(np.array(column, np.int64) for column in numbers))


def _open_plain(path: str, flags: int) -> int:
    """Opens a file that is a plain one: a FIFO would wait for somebody to write."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "no plain file", path)


def _label(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    name = member.name
    readers.check_size(f"{path}:{name}", member.size, MOST_LABEL_BYTES)
    raw = archive.extractfile(member).read()
    if not re.fullmatch(rb"\s*[0-9]{1,9}\s*", raw):
        raise UsageError(f"{path}:{name}: expected a class number, got {raw[:20]!r}")
    return int(raw)
