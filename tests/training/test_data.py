"""Data: formats read exactly, damage named, batches reproducible from any point."""

import gzip
import pickle
import tarfile

import numpy as np
import pytest
import torch
from helpers.image_sets import idx, write_cifar, write_idx_set
from torch.nn import functional as F

from dsr_kernels.errors import UsageError
from dsr_kernels.training.data import readers, tensors
from dsr_kernels.training.data import sets as datasets
from dsr_kernels.training.recipe.schema import Data


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_sets_are_read_gzipped_or_not(tmp_path, compress, nested, name):
    folder = tmp_path / name.replace("_", "-") if nested else tmp_path
    written = write_idx_set(folder, compress)
    data = datasets.load(Data(name=name, validation=0), tmp_path)
    assert data.validation is None and data.image_shape == (1, 28, 28)
    assert np.array_equal(data.train.images[:, 0].numpy(), written["train-images-idx3-ubyte"])
    assert np.array_equal(data.test.labels.numpy(), written["t10k-labels-idx1-ubyte"])


@pytest.mark.parametrize("archive", [True, False])
def test_cifar10_is_read_from_folder_and_archive(tmp_path, archive):
    images = write_cifar(tmp_path)
    if archive:
        with tarfile.open(tmp_path / readers.CIFAR_ARCHIVE, "w:gz") as file:
            file.add(tmp_path / readers.CIFAR_FOLDER, readers.CIFAR_FOLDER)
        for path in (tmp_path / readers.CIFAR_FOLDER).iterdir():
            path.unlink()
    data = datasets.load(Data(name="cifar10", validation=0), tmp_path)
    assert data.image_shape == (3, 32, 32) and len(data.train) == 100 and len(data.test) == 20
    assert np.array_equal(data.train.images[20].numpy().ravel(), images[1][0])
    assert np.array_equal(data.test.images[3].numpy().ravel(), images[5][3])


def test_missing_data_says_where_it_looked_and_how_to_get_it(tmp_path):
    with pytest.raises(UsageError) as caught:
        datasets.load(Data(name="fashion_mnist", validation=0), tmp_path)
    message = str(caught.value)
    assert "dataset-fashion-mnist" in message and str(tmp_path) in message and "\n" not in message
    with pytest.raises(UsageError, match=r"cifar-10-python\.tar\.gz.* University of Toronto"):
        datasets.load(Data(name="cifar10", validation=0), tmp_path)
    with pytest.raises(UsageError, match=r"data set mnist not found.*MNIST page"):
        datasets.load(Data(name="mnist", validation=0), tmp_path)


def test_damaged_idx_files_are_named(tmp_path):
    def expect(reason, name="train-images-idx3-ubyte"):
        with pytest.raises(UsageError, match=reason) as caught:
            datasets.load(Data(name="mnist", validation=0), tmp_path)
        assert name in str(caught.value)

    write_idx_set(tmp_path, compress=False)
    path = tmp_path / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    expect("holds 31375 bytes, expected 31376 for shape")
    path.write_bytes(whole + b"x")
    expect("holds more bytes, expected 31376 for shape")
    path.write_bytes(b"PNG" + whole[3:])
    expect("does not start as an IDX file")
    path.write_bytes(b"")
    expect("does not start as an IDX file")
    path.write_bytes(whole[:6])
    expect("holds 6 bytes")
    path.write_bytes(gzip.compress(whole)[:-20])
    expect("cannot be read")
    path.write_bytes(idx(np.zeros((39, 28, 28))))
    expect(r"images \(39, 28, 28\) for labels \(40,\)")
    path.write_bytes(whole)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.full(40, 10)))
    expect("the label 10", "train-labels-idx1-ubyte")
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(UsageError, match="only some of the four"):
        datasets.load(Data(name="mnist", validation=0), tmp_path)


class Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_damaged_cifar_batches_are_named_and_never_executed(tmp_path, capsys):
    write_cifar(tmp_path)
    path = tmp_path / readers.CIFAR_FOLDER / "data_batch_3"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"data_batch_3: is not one of CIFAR's python batches"):
        readers.cifar10(tmp_path)
    path.write_bytes(pickle.dumps({b"data": Harmful(), b"labels": []}, protocol=2))
    with pytest.raises(UsageError, match="it asks for"):
        readers.cifar10(tmp_path)
    assert "must not run" not in capsys.readouterr().out
    path.write_bytes(pickle.dumps({b"data": np.zeros((2, 7), np.uint8), b"labels": [0, 1]}))
    with pytest.raises(UsageError, match=r"data uint8 \(2, 7\)"):
        readers.cifar10(tmp_path)
    path.unlink()
    with pytest.raises(UsageError, match=r"data_batch_3 is missing"):
        readers.cifar10(tmp_path)


def test_damaged_cifar_archive_is_named(tmp_path):
    (tmp_path / readers.CIFAR_ARCHIVE).write_bytes(b"\x1f\x8b not an archive")
    with pytest.raises(UsageError, match=r"cifar-10-python\.tar\.gz: cannot be read"):
        readers.cifar10(tmp_path)


def test_digits_are_split_without_overlap_and_upsampled():
    data = datasets.load(Data(name="digits", validation=150, image_size=32))
    assert data.image_shape == (1, 32, 32)
    assert [len(p) for p in (data.train, data.validation, data.test)] == [1287, 150, 360]
    assert torch.bincount(data.validation.labels).tolist() == [15] * 10
    parts = (data.train, data.validation, data.test)
    everything = torch.cat([part.images for part in parts]).flatten(1)
    images, _ = readers.digits(32)
    assert torch.equal(
        everything.sum(1).sort().values, torch.from_numpy(images).flatten(1).sum(1).sort().values
    )
    again = datasets.load(Data(name="digits", validation=150, image_size=32))
    assert torch.equal(again.test.images, data.test.images)
    assert again.fingerprint() == data.fingerprint()


def test_stratified_takes_each_class_in_its_share():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 21)
    held, rest = tensors.stratified(labels, 10)
    assert torch.bincount(labels[held]).tolist() == [5, 3, 2]
    assert sorted(held.tolist() + rest.tolist()) == list(range(101))


def test_normalised_training_images_have_zero_mean_and_unit_deviation():
    data = datasets.load(Data(name="digits", validation=0, image_size=0))
    images = data.normalize(data.train.images)
    assert abs(images.mean().item()) < 1e-5
    assert images.std().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("pad", [1, 4, 7])
def test_crop_flip_equals_reflection_padding_image_by_image(pad):
    images = torch.randint(0, 256, (64, 3, 9, 8), dtype=torch.uint8)
    got = tensors.crop_flip(images, pad, True, tensors.stream(0, "test"))
    again = tensors.stream(0, "test")
    offsets = torch.randint(-pad, pad + 1, (2, 64, 1), generator=again).flatten(1)
    mirrored = torch.rand(64, 1, generator=again) < 0.5
    padded = F.pad(images.float(), [pad] * 4, mode="reflect").to(torch.uint8)
    for i in range(64):
        top, left = (offsets[:, i] + pad).tolist()
        expected = padded[i, :, top : top + 9, left : left + 8]
        assert torch.equal(got[i], expected.flip(2) if mirrored[i] else expected)
    assert 0 < mirrored.sum() < 64 and len(offsets.unique()) == 2 * pad + 1


def test_batches_from_the_middle_are_the_ones_of_the_whole_epoch():
    settings = Data(name="digits", validation=0, image_size=0, augment="crop_flip", pad=2)
    data = datasets.load(settings)
    whole = list(datasets.train_batches(data, settings, 100, seed=3, epoch=2))
    rest = list(datasets.train_batches(data, settings, 100, seed=3, epoch=2, start=9))
    assert len(whole) == 14 and len(rest) == 5
    for (a, b), (c, d) in zip(whole[9:], rest, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


def test_epochs_and_seeds_differ_and_an_epoch_shows_every_image_once():
    settings = Data(name="digits", validation=0, image_size=0)
    data = datasets.load(settings)

    def labels(seed, epoch):
        return torch.cat([y for _, y in datasets.train_batches(data, settings, 1, seed, epoch)])

    first = labels(0, 0)
    assert torch.equal(first, labels(0, 0))
    assert not torch.equal(first, labels(0, 1)) and not torch.equal(first, labels(1, 0))
    assert torch.equal(first.sort().values, data.train.labels.sort().values)


def test_settings_that_do_not_fit_the_data_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"data\.validation: expected less than the 1437"):
        datasets.load(Data(name="digits", validation=1437))
    with pytest.raises(UsageError, match=r"data\.pad: expected less than the image side, got 8"):
        datasets.load(Data(name="digits", validation=0, augment="crop", pad=8))
    with pytest.raises(UsageError, match=r"data\.image_size: is for digits and pictures only"):
        datasets.load(Data(name="mnist", validation=0, image_size=32), tmp_path)
