"""ImageNet's files: labels, augmentation, order, both layouts, and what is said of damaged ones."""

import math
import multiprocessing
import shutil
import tarfile

import numpy as np
import pytest
import torch
from helpers.image_sets import add, write_folders, write_shards
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dsr_kernels.errors import UsageError
from dsr_kernels.training.data import images
from dsr_kernels.training.data import sets as datasets
from dsr_kernels.training.recipe.schema import Data


def settings(**changes):
    given = {"validation": 0, "augment": images.AUGMENT, "image_size": 32, "workers": 0}
    return Data(name="imagenet", **{**given, **changes})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


def batches(data, chosen, **options):
    arguments = {"batch_size": 8, "seed": 1, "epoch": 2, **options}
    return list(datasets.train_batches(data, chosen, **arguments))


def equal(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def test_labels_are_the_places_of_the_sorted_class_names(tmp_path):
    picture = Image.new("RGB", (40, 40), (255, 0, 0))
    for part, names in (
        ("train", ("b/x.jpg", "a/deep/y.PNG", "c/z.jpeg", "B/w.jpg")),
        ("val", ("c/1.jpg", "a/1.jpg")),
    ):
        for name in names:
            (tmp_path / part / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / part / name)
        (tmp_path / part / "notes.txt").write_text("no class")
    (tmp_path / "train/a/notes.txt").write_text("no image")
    data = datasets.load(settings(), tmp_path)
    assert data.classes == 4 and data.image_shape == (3, 32, 32) and data.validation is None
    listing = data.train.listing
    assert list(zip(listing.names.tolist(), listing.labels.tolist(), strict=True)) == [
        (b"B/w.jpg", 0),
        (b"a/deep/y.PNG", 1),
        (b"b/x.jpg", 2),
        (b"c/z.jpeg", 3),
    ]
    assert data.test.labels.tolist() == [1, 3]
    for pixels, _ in datasets.eval_batches(data, data.test, 5):
        red = (torch.tensor([1.0, 0.0, 0.0]) - torch.tensor(images.MEAN)) / torch.tensor(images.STD)
        expected = red.view(1, 3, 1, 1).expand(2, 3, 32, 32)
        torch.testing.assert_close(pixels, expected, rtol=0, atol=0.03)  # JPEG's red is 254


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**31))
def test_crop_boxes_lie_inside_and_have_the_papers_area_and_aspect(width, height, seed):
    numbers = torch.rand(41, generator=torch.Generator().manual_seed(seed)).tolist()
    left, top, w, h = images.crop_box(width, height, numbers)
    assert left >= 0 and top >= 0 and w >= 1 and h >= 1
    assert left + w <= width and top + h <= height
    if min(width, height) > 60 and 3 / 4 <= width / height <= 4 / 3:
        assert 0.07 < w * h / (width * height) <= 1
        assert 0.7 < w / h < 1.43


def test_crop_boxes_by_hand():
    """The first try that fits; where none does, the largest central box of the nearest ratio."""
    middle = math.log(0.75 / 0.75) / math.log(16 / 9)
    first = [0.0, middle, 0.0, 0.0]  # 8 % of the area, ratio 3/4, at the upper left
    width, height = round(math.sqrt(2400 * 0.75)), round(math.sqrt(2400 / 0.75))
    assert images.crop_box(100, 300, [*first, *[0.0] * 36]) == (0, 0, width, height)
    whole = [1.0, 0.5, 0.999, 0.999]  # all of the area and square: fits a square only
    assert images.crop_box(64, 64, whole * 10) == (0, 0, 64, 64)
    assert images.crop_box(400, 100, whole * 10) == (133, 0, 133, 100)
    assert images.crop_box(100, 400, whole * 10) == (0, 133, 100, 133)
    assert images.crop_box(400, 100, [*whole, *first, *whole * 8])[:2] == (0, 0)


@pytest.mark.parametrize("size", [(512, 256), (256, 301), (256, 256)])
def test_evaluation_takes_the_middle_of_256(size):
    """Pictures whose shorter side is 256 are only cropped."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    got = np.asarray(images.central_crop(Image.fromarray(pixels), 224))
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    assert np.array_equal(got, pixels[top : top + 224, left : left + 224])


def test_evaluation_resizes_the_shorter_side_and_keeps_the_aspect():
    ramp = np.broadcast_to(np.linspace(0, 255, 500)[None, :, None], (250, 500, 3))
    got = np.asarray(images.central_crop(Image.fromarray(ramp.astype(np.uint8)), 28))  # 64 x 32
    expected = np.linspace(255 * 18.5 / 64, 255 * 45.5 / 64, 28)
    assert got.shape == (28, 28, 3) and np.abs(got[14, :, 0] - expected).max() < 2


def test_half_of_the_training_images_are_mirrored_and_no_two_epochs_are_alike(folders):
    data = datasets.load(settings(), folders)
    split = data.train
    draws = [datasets.stream(0, "augment", epoch, 3) for epoch in range(40)]
    seen = [split.image(3, draw) for draw in draws]
    assert len({image.tobytes() for image in seen}) == 40
    wide = Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8)[None, :, None], (50, 1, 3)))
    flips = 0
    for epoch in range(200):
        pixels = images.random_crop(wide, 16, datasets.stream(0, epoch)).astype(int)
        assert pixels.shape == (16, 16, 3)
        flips += pixels[8, 0, 0] > pixels[8, -1, 0]
    assert 70 < flips < 130


def test_images_depend_on_seed_and_epoch_but_not_on_workers_or_where_one_starts(folders):
    data, chosen = datasets.load(settings(), folders), settings()
    whole = batches(data, chosen)
    assert len(whole) == 4 and whole[0][0].shape == (8, 3, 32, 32)
    for workers in (1, 3):
        other = datasets.load(settings(workers=workers), folders)
        before = torch.get_rng_state()
        assert equal(batches(other, chosen), whole)
        assert equal(batches(other, chosen, start=2), whole[2:])
        assert equal(batches(other, chosen, start=4), [])
        assert torch.equal(before, torch.get_rng_state())
    # Another batch size shows the same images of the same epoch, only cut otherwise.
    assert torch.equal(
        torch.cat([x for x, _ in batches(data, chosen, batch_size=4)])[:32],
        torch.cat([x for x, _ in whole]),
    )
    assert not equal(batches(data, chosen, seed=2), whole)
    assert not equal(batches(data, chosen, epoch=3), whole)


def test_workers_are_forked_whatever_python_starts_by_default(folders):
    """A server's children would heed its signals, not the run's, and copy all the file names."""
    data, chosen = datasets.load(settings(workers=2), folders), settings()
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        others = set(multiprocessing.active_children())  # of other tests in this process
        made = datasets.train_batches(data, chosen, 8, 1, 2)
        next(made)
        kinds = {type(child).__name__ for child in {*multiprocessing.active_children()} - others}
        made.close()
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert kinds == {"ForkProcess"} and others.issuperset(multiprocessing.active_children())


def test_shards_give_what_folders_give(folders, shards):
    one, other = (datasets.load(settings(validation=12, workers=2), x) for x in (folders, shards))
    assert [len(other.train), len(other.validation), len(other.test)] == [24, 12, 12]
    assert other.classes == 12 and other.train.listing.shards[1] == "train-001.tar"
    assert torch.bincount(other.validation.labels).tolist() == [1] * 12
    assert equal(batches(one, settings()), batches(other, settings()))
    for part in ("validation", "test"):
        pairs = [list(datasets.eval_batches(x, getattr(x, part), 5)) for x in (one, other)]
        assert equal(*pairs) and len(pairs[0]) == 3
    plain = settings(augment="none")
    assert equal(batches(one, plain, epoch=0)[:1], batches(other, plain, epoch=0)[:1])


def test_the_fingerprint_tells_other_files(folders, tmp_path):
    first = datasets.load(settings(), folders).fingerprint()
    assert first.startswith("imagenet, 36 training images, 12 classes")
    copy = shutil.copytree(folders, tmp_path / "copy")
    assert datasets.load(settings(), copy).fingerprint() == first
    with (copy / "train/n03/03_1.JPEG").open("ab") as file:
        file.write(b"x")
    assert datasets.load(settings(), copy).fingerprint() != first
    assert datasets.load(settings(validation=3), folders).fingerprint() != first


def test_missing_files_say_what_was_looked_for(folders, shards, tmp_path):
    def expect(message, folder=tmp_path, **changes):
        with pytest.raises(UsageError, match=message) as caught:
            datasets.load(settings(**changes), folder)
        assert "\n" not in str(caught.value)

    expect(r"imagenet not found \(looked in .*train/CLASS/\*\.jpg and val/CLASS/\*\.jpg, or train-")
    (tmp_path / "train").mkdir()
    expect("holds train but no val")
    (tmp_path / "val").mkdir()
    expect(r"train holds no folders of classes")
    (tmp_path / "train/a").mkdir()
    expect(r"train/a holds no images \(jpg, jpeg, png\)")
    Image.new("L", (30, 30)).save(tmp_path / "train/a/1.jpg")
    Image.new("L", (30, 30)).save(tmp_path / "val/1.jpg")
    expect("val holds no folders of classes, expected .*CLASS")
    (tmp_path / "val/b").mkdir()
    expect("val/b: expected one of the 1 classes with training images, a to a")
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(shards / "val-000.tar", only)
    expect(r"holds val-\*\.tar but no train-\*\.tar", only)
    expect(r"data\.validation: expected less than the 36", folders, validation=36)
    expect(r"data\.augment: expected one of none, resized_crop_flip", folders, augment="crop_flip")
    with pytest.raises(UsageError, match=r"expected one of none, crop_flip, crop for digits"):
        datasets.load(Data(name="digits", validation=0, augment=images.AUGMENT))


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_named_in_one_sentence(folders, tmp_path, workers):
    copy = shutil.copytree(folders, tmp_path / "copy")
    data = datasets.load(settings(workers=workers), copy)
    path = copy / "train/n05/05_1.JPEG"
    raw = path.read_bytes()

    def expect(content, message):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=message) as caught:
            batches(data, settings(), batch_size=36)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    expect(raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2 - 1), "holds .* bytes, expected")
    expect(b"\0" * len(raw), "not a picture in JPEG or PNG")
    expect(raw[:20] + bytes(len(raw) - 20), "cannot be decoded|not a picture")
    path.unlink()
    with pytest.raises(UsageError, match=r"05_1\.JPEG: cannot be read \(No such file"):
        batches(data, settings(), batch_size=36)


def test_damaged_shards_are_named(shards, tmp_path):
    def expect(message, *members):
        copy = shutil.copytree(shards, tmp_path / "copy", dirs_exist_ok=True)
        path = copy / "train-002.tar"
        with tarfile.open(path, "a") as archive:
            for name, content in members:
                add(archive, name, content)
        with pytest.raises(UsageError, match=message) as caught:
            datasets.load(settings(), copy)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    picture = (shards / "train-000.tar").read_bytes()[:100]
    expect("holds an image of the key n/new but no label .cls", ("n/new.jpg", picture))
    expect("holds a label of the key new but no image", ("new.cls", b"3"))
    expect("two images of the key a", ("a.jpg", picture), ("a.png", picture), ("a.cls", b"1"))
    expect(
        r"new\.cls: expected a class number, got b'-1'", ("new.jpg", picture), ("new.cls", b"-1")
    )
    path = tmp_path / "copy/train-002.tar"
    path.write_bytes((shards / "train-002.tar").read_bytes()[:1700])
    with pytest.raises(UsageError, match=r"train-002\.tar: cannot be read .*damaged"):
        datasets.load(settings(), tmp_path / "copy")
    shutil.copytree(shards, tmp_path / "copy", dirs_exist_ok=True)
    with tarfile.open(tmp_path / "copy/val-000.tar", "a") as archive:
        add(archive, "new.jpg", picture)
        add(archive, "new.cls", b"12")
    with pytest.raises(UsageError, match=r"new\.jpg has the label 12, expected 0 to 11 as in"):
        datasets.load(settings(), tmp_path / "copy")


def test_pillow_is_asked_for_where_it_is_missing(folders, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(UsageError, match=r"needs pillow, .* pip install \"dsr_kernels\[imagenet\]"):
        datasets.load(settings(), folders)
