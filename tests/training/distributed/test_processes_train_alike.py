"""`dsr train` on several processes does what it does on one: the recipe's batch is all of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from helpers import crew
from helpers.small_runs import arguments, rows, train
from safetensors.torch import load_file
from torch import nn

# 36 iterations, rewires at 5, 10, ..., 30. The last batch of the 150 validation images is one
# image: the share of all processes but the last is empty.
CHANGES = ("training.eval_batch_size=149", "training.eval_test_every=1")
METHODS = {
    "dsr": (),
    "set": ("rewiring.fraction=0.3",),
    "rigl": ("rewiring.fraction=0.3",),
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def only_the_first_writes(rank: int) -> None:
    """Ends every other process at its first write below a folder of pytest's."""

    def watch(event: str, given: tuple) -> None:
        writes = event == "open" and isinstance(given[0], str) and given[2] & WRITES
        if (writes or event in ("os.mkdir", "os.rename", "os.remove")) and "pytest-" in given[0]:
            os.write(2, f"{event} {given}\n".encode())
            os._exit(99)

    if rank:
        sys.addaudithook(watch)


def norm_of_each(self: nn.BatchNorm1d, x: torch.Tensor) -> torch.Tensor:
    """In place of batch norm, whose statistics are of a process's own part."""
    return nn.functional.layer_norm(x, x.shape[1:], self.weight, self.bias)


def without_batch_norm(rank: int) -> None:
    nn.BatchNorm1d.forward = norm_of_each
    only_the_first_writes(rank)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints/latest/weights.safetensors")


def assert_alike(one: Path, other: Path) -> None:
    """The same patterns, and values within float32's rounding."""
    found, expected = weights(one), weights(other)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=2e-4, msg=key)
        else:
            assert torch.equal(found[key], value), key


def assert_rows_alike(found: dict[str, str], expected: dict[str, str], rounded: tuple) -> None:
    """The same in all columns, within float32's rounding in those that are `rounded`."""
    for name, value in expected.items():
        if name in rounded and value:
            assert float(found[name]) == pytest.approx(float(value), rel=1e-3), name
        else:
            assert found[name] == value, name


@pytest.mark.parametrize("method,size", [("dsr", 2), ("set", 2), ("rigl", 2), ("rigl", 4)])
def test_a_batch_in_parts_trains_as_the_whole_batch_does(method, size, tmp_path, monkeypatch):
    monkeypatch.setattr(nn.BatchNorm1d, "forward", norm_of_each)
    changes = (f"method={method}", *METHODS[method], *CHANGES)
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert train(alone, *changes) == 0
    ended = crew.run(tmp_path, arguments(together, *changes), size, without_batch_norm)
    assert [rank.code for rank in ended] == [0] * size, ended
    assert f"{size} processes on " in ended[0].text and "test accuracy" in ended[0].text
    assert [rank.text for rank in ended[1:]] == [""] * (size - 1)

    assert_alike(together, alone)
    rewires = [rows(run, "rewires") for run in (together, alone)]
    assert len(rewires[0]) == 7
    for found, expected in zip(*rewires, strict=True):
        assert_rows_alike(found, expected, ("threshold", "next_threshold"))
    for found, expected in zip(rows(together, "metrics"), rows(alone, "metrics"), strict=True):
        assert_rows_alike(found, expected, ("train_loss", "validation_loss", "test_loss"))


def test_the_first_process_writes_all_that_a_run_leaves(tmp_path):
    run = tmp_path / "run"
    command = [part for part in arguments(run, "training.epochs=2") if part != "--no-report"]
    ended = crew.run(tmp_path, command, prepare=only_the_first_writes)
    assert [rank.code for rank in ended] == [0, 0], ended
    about = json.loads((run / "run.json").read_text())
    host = os.uname().nodename
    assert about["processes"] == {"number": 2, "hosts": [host, host]}
    assert f"2 on {host}" in (run / "report.html").read_text()
    results = json.loads((run / "results.json").read_text())
    assert results["test_images"] == 360
    for row in rows(run, "timings"):
        assert row["images"] == "1200"  # of both processes, and so is the speed
        speed = float(row["images"]) / float(row["train_seconds"])
        assert float(row["images_per_second"]) == pytest.approx(speed, rel=1e-2)
    assert len(rows(run, "metrics")) == 2


def test_processes_draw_the_same_crops_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(nn.BatchNorm1d, "forward", norm_of_each)
    changes = ("data.augment=crop_flip", "data.pad=1", "training.epochs=1")
    assert train(tmp_path / "alone", *changes) == 0
    ended = crew.run(tmp_path, arguments(tmp_path / "together", *changes), 2, without_batch_norm)
    assert [rank.code for rank in ended] == [0, 0], ended
    assert_alike(tmp_path / "together", tmp_path / "alone")


def test_a_model_with_batch_norm_trains_in_parts(tmp_path):
    """Each process's statistics are those of its part; evaluation takes the first one's."""
    run = tmp_path / "run"
    ended = crew.run(tmp_path, arguments(run, kind="wrn"))
    assert [rank.code for rank in ended] == [0, 0], ended
    table = rows(run, "rewires")
    assert len(table) > 2 and len({row["nonzeros"] for row in table}) == 1
