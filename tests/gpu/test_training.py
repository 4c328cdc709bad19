"""`dsr train --device cuda` on the embedded digits: learns, repeats itself, continues exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.small_runs import QUIET, artefacts, interrupt_at, rows, train

from dsr_kernels.cli import main

from .device import DEVICE
from .stand_ins import use_where_missing

pytestmark = pytest.mark.gpu
KINDS = ["lenet", "wrn"]
KIND = DEVICE.type


@pytest.fixture(scope="module", autouse=True)
def _packages():
    with pytest.MonkeyPatch.context() as patch:
        use_where_missing(patch)
        yield


@pytest.fixture(scope="module")
def finished(_packages, tmp_path_factory) -> dict[str, Path]:
    """An uninterrupted run of each kind, to compare with."""
    runs = {kind: tmp_path_factory.mktemp(kind) / "run" for kind in KINDS}
    for kind, run in runs.items():
        assert train(run, kind=kind, device=KIND) == 0
    return runs


def test_lenet_learns_the_digits(tmp_path: Path) -> None:
    changes = ("training.epochs=6", "rewiring.stop_epoch=5")
    assert train(tmp_path / "run", *changes, device=KIND) == 0
    table = rows(tmp_path / "run", "metrics")
    assert float(table[-1]["validation_accuracy"]) > 0.9
    assert float(table[-1]["train_loss"]) < 0.5 * float(table[0]["train_loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_rewire_keeps_the_total(finished: dict[str, Path], kind: str) -> None:
    table = rows(finished[kind], "rewires")
    assert len({row["nonzeros"] for row in table}) == 1 and len(table) > 2
    assert any(int(row["pruned"]) > 0 for row in table[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bits(
    finished: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    train(tmp_path / "again", kind=kind, device=KIND)
    assert artefacts(tmp_path / "again") == artefacts(finished[kind])


@pytest.mark.parametrize("kind,iteration", [("lenet", 17), ("wrn", 5)])
def test_ctrl_c_saves_and_resume_is_exact(
    finished: dict[str, Path], kind: str, iteration: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, iteration)
        assert train(run, kind=kind, device=KIND) == 130
    assert main(["train", "--resume", str(run), "--device", KIND, *QUIET]) == 0
    assert artefacts(run) == artefacts(finished[kind])
