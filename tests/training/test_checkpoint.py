"""Checkpoints: complete or absent at every instant; whatever is wrong with one is said."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from dsr_kernels.errors import UsageError
from dsr_kernels.training.run import checkpoint as module
from dsr_kernels.training.run import files
from dsr_kernels.training.run.checkpoint import MANIFEST, STATE, WEIGHTS, Checkpoints, load


def content(number):
    weights = {
        "a.weight_values": torch.full((5,), float(number)),
        "a.col_indices": torch.arange(5, dtype=torch.int32),
        "b.weight": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "bn.num_batches_tracked": torch.tensor(number),
    }
    state = {"number": number, "rng": torch.get_rng_state(), "nested": {"x": [1, 0.1, None]}}
    return weights, state


def save(store, number):
    return store.save(number, *content(number))


def test_what_is_saved_comes_back_bit_by_bit(tmp_path):
    store = Checkpoints(tmp_path / "checkpoints")
    weights, state = content(7)
    path = store.save(7, weights, state)
    got, got_state = store.load_latest()
    assert set(got) == set(weights)
    assert all(torch.equal(got[k], v) and got[k].dtype == v.dtype for k, v in weights.items())
    assert got_state["nested"] == {"x": [1, 0.1, None]} and got_state["number"] == 7
    assert (tmp_path / "checkpoints/latest").resolve() == path
    # Readable without dsr_kernels: plain safetensors, and a pickle that runs no code.
    assert torch.equal(load_file(path / WEIGHTS)["a.weight_values"], weights["a.weight_values"])
    assert torch.load(path / STATE, weights_only=True)["number"] == 7


def test_shared_storage_can_be_saved(tmp_path):
    tensor = torch.arange(6.0)
    store = Checkpoints(tmp_path / "c")
    store.save(1, {"a": tensor, "b": tensor, "c": tensor[2:]}, {})
    assert torch.equal(store.load_latest()[0]["c"], tensor[2:])


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(tmp_path / "nothing").load_latest() is None


def test_the_newest_are_kept(tmp_path):
    store = Checkpoints(tmp_path, keep=3)
    for number in (1, 5, 20, 100, 1000):
        save(store, number)
    assert [p.name for p in store.steps()] == [f"step-{n:010d}" for n in (20, 100, 1000)]
    assert store.load_latest()[1]["number"] == 1000


def test_a_second_checkpoint_at_one_step_wins(tmp_path):
    store = Checkpoints(tmp_path, keep=1)
    store.save(5, content(1)[0], {"number": 1})
    store.save(5, content(2)[0], {"number": 2})
    assert store.load_latest()[1]["number"] == 2 and len(store.steps()) == 1
    save(store, 6)
    assert store.load_latest()[1]["number"] == 6


class Crash(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def crash_at(monkeypatch, count):
    """The `count`-th file operation of saving does half its work, or none, and the process ends."""
    calls = []

    def wrap(owner, name):
        real = getattr(owner, name)

        def operation(*args, **kwargs):
            calls.append(name)
            if len(calls) == count:
                if name == "rmtree":  # a half-removed folder
                    os.unlink(next(os.scandir(args[0])).path)
                raise Crash(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, operation)

    for owner, name in (
        (files, "sync_file"),
        (module, "sync_folder"),
        (os, "rename"),
        (os, "replace"),
        (torch, "save"),
        (shutil, "rmtree"),
    ):
        wrap(owner, name)
    return calls


def test_a_crash_at_any_file_operation_leaves_a_complete_checkpoint(tmp_path):
    count, names = 0, set()
    while True:
        count += 1
        folder = tmp_path / str(count)
        store = Checkpoints(folder, keep=1)
        save(store, 1)
        with pytest.MonkeyPatch.context() as patch:
            calls = crash_at(patch, count)
            try:
                save(store, 2)
                crashed = False
            except Crash:
                crashed = True
        names.add(calls[-1])
        weights, state = Checkpoints(folder, keep=1).load_latest()
        assert state["number"] in (1, 2)
        assert all(load(path) for path in store.steps())  # the older ones are whole, too
        assert weights["a.weight_values"][0] == state["number"]
        again = Checkpoints(folder, keep=1)
        save(again, 3)
        assert again.load_latest()[1]["number"] == 3
        assert sorted(p.name for p in folder.iterdir()) == ["latest", f"step-{3:010d}"]
        if not crashed:
            break
    assert names == {"save", "sync_file", "sync_folder", "rename", "replace", "rmtree"}
    assert count > 9


@pytest.mark.parametrize("name", [WEIGHTS, STATE])
def test_truncated_files_are_named(tmp_path, name):
    path = save(Checkpoints(tmp_path), 1)
    raw = (path / name).read_bytes()
    (path / name).write_bytes(raw[:-1])
    with pytest.raises(UsageError, match=rf"truncated checkpoint: {name} has {len(raw) - 1} bytes"):
        load(path)
    (path / name).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(UsageError, match=rf"damaged checkpoint: {name} does not match"):
        load(path)
    (path / name).unlink()
    with pytest.raises(UsageError, match=rf"damaged checkpoint: {name} is missing"):
        load(path)


def test_the_older_checkpoint_is_offered_when_the_newest_is_damaged(tmp_path):
    store = Checkpoints(tmp_path)
    save(store, 1)
    (save(store, 2) / WEIGHTS).write_bytes(b"")
    with pytest.raises(UsageError, match=f"resume from step-{1:010d} instead"):
        store.load_latest()
    shutil.rmtree(store.steps()[-1])
    assert store.load_latest()[1]["number"] == 1


@pytest.mark.parametrize("manifest", [None, "", "[]", '{"format": "other", "files": {}}', "{}"])
def test_foreign_folders_are_refused(tmp_path, manifest):
    path = save(Checkpoints(tmp_path), 1)
    if manifest is None:
        (path / MANIFEST).unlink()
    else:
        (path / MANIFEST).write_text(manifest)
    with pytest.raises(UsageError, match="not a checkpoint of dsr_kernels"):
        load(path)


def test_a_newer_format_is_refused(tmp_path):
    path = save(Checkpoints(tmp_path), 1)
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(UsageError, match="expected checkpoint format 2, got 99: another version"):
        load(path)
