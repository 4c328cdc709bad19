"""Files that claim or hold too much, or are of another kind: one sentence, and nothing is read."""

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from helpers.hostile import GIB, expect
from helpers.image_sets import idx, write_cifar, write_idx_set
from helpers.small_runs import refused

from dsr_kernels.training.data import limits, readers


def header(*shape):
    return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()


def test_a_zipped_file_is_read_no_further_than_its_header_says(tmp_path):
    """What lies behind cannot even be unzipped, so reading it would be another error."""
    write_idx_set(tmp_path, compress=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    bomb = gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**24))
    path.write_bytes(bomb[:-1000])
    expect("holds more bytes, expected 31376 for shape", "mnist", tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_header_that_claims_more_than_the_file_can_hold_is_refused(tmp_path, zipped):
    write_idx_set(tmp_path, compress=zipped)
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * zipped)
    raw = header(2**31, 28, 28) + bytes(100)
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    expect(r"train-images.*bytes, too few for shape \(2147483648, 28, 28\)", "mnist", tmp_path)


def test_what_memory_cannot_hold_is_refused_before_it_is_read(tmp_path, monkeypatch, capsys):
    write_idx_set(tmp_path, compress=False)
    monkeypatch.setattr(limits, "memory_bytes", lambda: 31_000)
    expect(r"an array of shape \(40, 28, 28\) takes at least .* GiB", "mnist", tmp_path)
    message = refused(capsys, "train", "--set", "data.image_size=40", "--out", str(tmp_path / "r"))
    assert "data.image_size: 1797 digits of 40x40 takes at least" in message


def test_all_memory_is_what_the_machine_and_its_limits_leave(tmp_path, monkeypatch):
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(limits.resource, "getrlimit", lambda kind: (2**30, -1))
    (tmp_path / "max").write_text("max\n")
    monkeypatch.setattr(limits, "CONTROL_GROUPS", (tmp_path / "none", tmp_path / "max"))
    assert limits.memory_bytes() == min(machine, 2**30)
    (tmp_path / "max").write_text("123456\n")
    assert limits.memory_bytes() == 123456


def test_test_images_of_another_size_are_refused(tmp_path):
    write_idx_set(tmp_path, compress=False)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(idx(np.zeros((20, 28, 27))))
    expect("t10k-images.* holds images of 28x27, those to train on are 28x28", "mnist", tmp_path)
    path.write_bytes(idx(np.zeros((20, 0, 28))))
    expect(r"t10k-images.* holds images \(20, 0, 28\)", "mnist", tmp_path)


LABELS = {
    "text": ["cat"] * 20,
    "nan": [float("nan")] * 20,
    "fractions": [0.7] * 20,
    "truth": [True] * 20,
    "nothing": [None] * 20,
    "lists": [[1]] * 20,
    "an array of fractions": np.full(20, 0.7),
    "an array of objects": np.array([object] * 20).astype(str).astype(object),
    "ten": [10] * 20,
    "negative": [-1] * 20,
    "huge": [2**70] * 20,
    "an array of huge ones": np.full(20, 2**63, np.uint64),
    "too few": [1] * 19,
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_are_not_of_the_ten_classes_are_refused(tmp_path, kind):
    write_cifar(tmp_path)
    path = tmp_path / readers.CIFAR_FOLDER / "data_batch_2"
    batch = {b"data": np.zeros((20, 3072), np.uint8), b"labels": LABELS[kind]}
    path.write_bytes(pickle.dumps(batch, protocol=2))
    found = "is not one of" if "objects" in kind else "holds labels"
    expect(f"data_batch_2: {found}", "cifar10", tmp_path)


def test_labels_in_an_array_are_read(tmp_path):
    write_cifar(tmp_path)
    path = tmp_path / readers.CIFAR_FOLDER / "test_batch"
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": np.array([3, 9], np.int16)}
    path.write_bytes(pickle.dumps(batch, protocol=2))
    assert readers.cifar10(tmp_path)[1][1].tolist() == [3, 9]


@pytest.mark.parametrize("data", [[[0] * 3072] * 20, "text", np.zeros((20, 3072), np.int16)])
def test_data_that_is_no_array_of_bytes_is_refused(tmp_path, data):
    write_cifar(tmp_path)
    path = tmp_path / readers.CIFAR_FOLDER / "test_batch"
    path.write_bytes(pickle.dumps({b"data": data, b"labels": [0] * 20}, protocol=2))
    expect("test_batch: holds data", "cifar10", tmp_path)


def forged(kind):
    """A batch whose array or dtype says of itself what none of NumPy's does."""
    pixels = np.zeros((2, 3072), np.uint8)
    raw = pickle.dumps({b"data": pixels, b"labels": [1, 2]}, protocol=2)
    dtype = pickle.dumps(np.dtype("u1"), protocol=2)
    # Of objects, whose memory is addresses.
    objects = raw.replace(b"X\x02\x00\x00\x00u1", b"X\x02\x00\x00\x00O8")
    # numpy.dtype("V8") with fields of its own choosing, and then an item of it set.
    state = b"(K\x03X\x01\x00\x00\x00|NX\x01\x00\x00\x00aN}KcKcK\x3ft"
    fields = (
        b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00V8\x89\x88\x87R"
        + state
        + b"bX\x01\x00\x00\x00aK\x01s."
    )
    return {
        "objects": objects,
        "an item of a dtype": fields,
        "a dtype": dtype,
        "too little memory": raw.replace(b"M\x00\x0c", b"M\x00\x7f"),
        "a sparse memo": b"\x80\x02}r\xff\xff\xff\xff" + raw[2:],
        "a large bytearray": b"\x80\x05\x96" + (2**36).to_bytes(8, "little") + b".",
        "another codec": b"\x80\x02c_codecs\nencode\nX\1\0\0\0aX\5\0\0\0rot13\x86R.",
        "a class that is changed": b"\x80\x02cnumpy\ndtype\n}U\x04args)sb.",
    }[kind]


FORGED = ("objects", "an item of a dtype", "a dtype", "too little memory", "a large bytearray")
FORGED += ("another codec", "a class that is changed")


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_batch_constructs_nothing_of_numpys(tmp_path, kind):
    write_cifar(tmp_path)
    (tmp_path / readers.CIFAR_FOLDER / "data_batch_1").write_bytes(forged(kind))
    expect("data_batch_1: is not one of CIFAR's python batches", "cifar10", tmp_path)


def test_an_entry_of_any_number_takes_no_memory(tmp_path):
    write_cifar(tmp_path)
    (tmp_path / readers.CIFAR_FOLDER / "test_batch").write_bytes(forged("a sparse memo"))
    assert readers.cifar10(tmp_path)[1][1].tolist() == [1, 2]


def archive(folder, *members, compress=True):
    """CIFAR's archive with the real batches, and behind them members of these names and fields."""
    write_cifar(folder)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as file:
        file.add(folder / readers.CIFAR_FOLDER, readers.CIFAR_FOLDER)
        for name, fields in members:
            member = tarfile.TarInfo(f"{readers.CIFAR_FOLDER}/{name}")
            for field, value in fields.items():
                setattr(member, field, value)
            file.fileobj.write(member.tobuf(tarfile.GNU_FORMAT))
    for path in (folder / readers.CIFAR_FOLDER).iterdir():
        path.unlink()
    content = raw.getvalue()
    path = folder / readers.CIFAR_ARCHIVE
    path.write_bytes(gzip.compress(content, 1) if compress else content)


BATCH = f"{readers.CIFAR_FOLDER}/data_batch_1"
MEMBERS = {
    "a link to itself": ({"type": tarfile.SYMTYPE, "linkname": "data_batch_1"}, "no|not a plain"),
    "a hard link to itself": ({"type": tarfile.LNKTYPE, "linkname": BATCH}, "not a plain file"),
    "a folder": ({"type": tarfile.DIRTYPE}, "not a plain file"),
    "a fifo": ({"type": tarfile.FIFOTYPE}, "not a plain file"),
    "a device": ({"type": tarfile.CHRTYPE}, "not a plain file"),
    "eight gigabytes": ({"size": 8 * GIB}, "has 8,589,934,592 bytes, expected at most"),
    "fewer than no bytes": ({"size": -512}, "has -512 bytes"),
    "a header of eight gigabytes": (
        {"type": tarfile.XHDTYPE, "size": 8 * GIB},
        "a header of 8,589",
    ),
    "a name of eight gigabytes": (
        {"type": tarfile.GNUTYPE_LONGNAME, "size": 8 * GIB},
        "a header of 8,589",
    ),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_a_member_that_is_no_plain_file_or_claims_too_much_is_refused(tmp_path, kind):
    fields, message = MEMBERS[kind]
    archive(tmp_path, ("data_batch_1", fields))
    expect(rf"cifar-10-python\.tar\.gz.*{message}", "cifar10", tmp_path)


def test_two_links_to_each_other_are_refused(tmp_path):
    links = (("data_batch_1", "data_batch_2"), ("data_batch_2", "data_batch_1"))
    members = ((name, {"type": tarfile.SYMTYPE, "linkname": to}) for name, to in links)
    archive(tmp_path, *members)
    expect("data_batch_1: is not a plain file but a folder, a link", "cifar10", tmp_path)


def test_an_archive_is_read_no_further_than_cifars_goes(tmp_path, monkeypatch):
    archive(tmp_path)
    monkeypatch.setattr(readers, "MOST_ARCHIVE_BYTES", 100_000)
    expect(r"tar\.gz: has .* bytes, expected at most 100,000", "cifar10", tmp_path)


def test_a_batch_that_is_missing_from_the_archive_is_named(tmp_path):
    write_cifar(tmp_path)
    with tarfile.open(tmp_path / readers.CIFAR_ARCHIVE, "w:gz") as file:
        for name in readers.CIFAR_TRAIN:
            file.add(
                tmp_path / BATCH.replace("data_batch_1", name), f"{readers.CIFAR_FOLDER}/{name}"
            )
    for path in (tmp_path / readers.CIFAR_FOLDER).iterdir():
        path.unlink()
    expect("holds no cifar-10-batches-py/test_batch", "cifar10", tmp_path)


def test_a_data_dir_that_cannot_be_looked_up_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for wrong in ("x" * 300, str(tmp_path / "file/below"), str(tmp_path / "loop"), "a\0b"):
        command = ("train", "--recipe", "lenet300-mnist", "--data-dir", wrong)
        message = refused(capsys, *command, "--out", str(tmp_path / "run"))
        assert message.startswith("dsr: --data-dir: ")
        assert not (tmp_path / "run").exists()
    (tmp_path / "train").write_text("")
    (tmp_path / "val").mkdir()
    expect("data set imagenet: .*train: Not a directory", "imagenet", tmp_path)
