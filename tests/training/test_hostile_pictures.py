"""Shards and folders of pictures that claim too much, or hold what is no picture: one sentence."""

import os
import tarfile

import pytest
from helpers.hostile import GIB, expect
from helpers.image_sets import add, write_folders, write_shards
from PIL import Image

from dsr_kernels.errors import UsageError
from dsr_kernels.training.data import sets as datasets
from dsr_kernels.training.data.listing import find as find_images
from dsr_kernels.training.recipe.schema import Data


@pytest.mark.parametrize("ending,message", [("cls", "expected at most 1,024"), ("jpg", "at most")])
def test_a_shard_whose_member_claims_eight_gigabytes_is_refused(tmp_path, ending, message):
    write_shards(tmp_path)
    path = tmp_path / "train-003.tar"
    member = tarfile.TarInfo(f"huge.{ending}")
    member.size = 8 * GIB - 512
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT))
    expect(
        rf"train-003\.tar:huge\.{ending}: has 8,589,934,080 bytes, .*{message}",
        "imagenet",
        tmp_path,
    )


def test_links_folders_and_fifos_in_a_shard_are_no_images(tmp_path):
    write_shards(tmp_path)
    with tarfile.open(tmp_path / "train-000.tar", "a") as file:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"new{number}.jpg")
            member.type, member.linkname = kind, member.name
            file.addfile(member)
    data = datasets.load(Data(name="imagenet", validation=0), tmp_path)
    assert len(data.train) == 36
    with tarfile.open(tmp_path / "train-000.tar", "a") as file:
        add(file, "new1.cls", b"3")
    expect("holds a label of the key new1 but no image", "imagenet", tmp_path)


def test_more_classes_than_images_are_refused(tmp_path):
    write_shards(tmp_path)
    with tarfile.open(tmp_path / "train-000.tar", "a") as file:
        add(file, "new.jpg", b"x")
        add(file, "new.cls", b"999999999")
    message = (
        r"new\.jpg has the label 999999999, expected less than the number of training images, 37"
    )
    expect(message, "imagenet", tmp_path)


def test_what_is_no_plain_file_in_a_folder_of_images_is_named(tmp_path):
    root = write_folders(tmp_path)
    path = root / "train/n03/new.jpg"
    os.mkfifo(path)
    expect(r"n03/new\.jpg: expected an image, got no plain file", "imagenet", root)
    path.unlink()
    path.symlink_to("nowhere.jpg")
    expect(r"n03/new\.jpg: expected an image, got no plain file", "imagenet", root)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(8 * GIB)  # a hole: takes no room
    expect(r"n03/new\.jpg: has 8,589,934,592 bytes", "imagenet", root)
    path.unlink()
    (root / "train/n03/loop").symlink_to("..")
    expect(r"n03/loop/n03: a link to a folder that it lies in", "imagenet", root)


def test_pictures_of_too_many_pixels_are_refused(tmp_path):
    root = write_folders(tmp_path)
    path = root / "train/n03/new.png"
    Image.new("L", (30_000, 1)).save(path)
    expect(r"new\.png: 30000 x 1 pixels are too narrow", "imagenet", root)
    Image.new("1", (10_000, 10_000)).save(path)
    expect(r"new\.png: cannot be decoded \(Image size \(100000000 pixels\)", "imagenet", root)
    Image.new("1", (8_300, 8_300)).save(path)
    expect(r"new\.png: cannot be decoded \(8300 x 8300 pixels\)", "imagenet", root)


def test_a_picture_of_another_format_is_refused_whatever_its_name(tmp_path):
    root = write_folders(tmp_path)
    path = root / "train/n03/new.jpg"
    for kind in ("EPS", "BMP", "GIF", "TIFF"):
        Image.new("L", (40, 40)).save(path, format=kind)
        expect(r"new\.jpg: not a picture in JPEG or PNG", "imagenet", root)


def test_a_picture_that_becomes_a_fifo_is_not_waited_for(tmp_path):
    root = write_folders(tmp_path)
    listing = find_images("imagenet", root)[0]
    path = root / "train" / os.fsdecode(listing.names[0])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="cannot be read"):
        listing.read(0)
