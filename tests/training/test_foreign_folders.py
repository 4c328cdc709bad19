"""Folders from elsewhere: links in the place of what is written to are not followed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.small_runs import QUIET, interrupt_at, refused, train

from dsr_kernels.cli import main
from dsr_kernels.errors import UsageError
from dsr_kernels.experiments import folder as experiment
from dsr_kernels.experiments.attempt import Attempt, Options
from dsr_kernels.training.report import page
from dsr_kernels.training.run import out_folder
from dsr_kernels.training.run.checkpoint import Checkpoints
from dsr_kernels.training.run.csv_files import CsvLog
from dsr_kernels.training.run.files import temporary, write_atomically
from dsr_kernels.training.run.folder import WRITTEN, Run


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    run = tmp_path / "run"
    run.mkdir()
    for target in (precious, tmp_path / "absent"):
        (run / out_folder.LOCK).symlink_to(target)
        with pytest.raises(UsageError, match=r"\.lock: expected a plain file, got a link"):
            out_folder.lock(run)
        assert not out_folder.is_locked(run)
        (run / out_folder.LOCK).unlink()
    assert precious.read_text() == "kept" and not (tmp_path / "absent").exists()


def test_a_lock_that_is_a_fifo_or_a_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / out_folder.LOCK)
    with pytest.raises(UsageError, match="expected a plain file"):
        out_folder.lock(tmp_path)
    (tmp_path / out_folder.LOCK).unlink()
    (tmp_path / out_folder.LOCK).mkdir()
    with pytest.raises(UsageError, match="expected a plain file"):
        out_folder.lock(tmp_path)


def test_a_temporary_file_that_is_a_link_is_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / temporary("run.json")).symlink_to(precious)
    write_atomically(tmp_path / "run.json", "new")
    assert precious.read_text() == "kept" and (tmp_path / "run.json").read_text() == "new"
    assert not (tmp_path / "run.json").is_symlink()


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / temporary("run.json")).write_text("half of it")
    write_atomically(tmp_path / "run.json", "new")
    assert (tmp_path / "run.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped behind iteration 20 of 24."""
    run = tmp_path_factory.mktemp("runs") / "half"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 20)
        assert train(run, "training.epochs=2") == 130
    (run / "plots").mkdir()
    (run / "wandb").mkdir()
    return run


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_part_of_a_run_that_is_a_link_is_refused_before_anything_is_written(
    half: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    run = shutil.copytree(half, tmp_path / "run", symlinks=True)
    elsewhere = tmp_path / "elsewhere"
    (run / name).rename(elsewhere)
    (run / name).symlink_to(elsewhere)
    before = contents(tmp_path)
    message = refused(capsys, "train", "--resume", str(run), *QUIET)
    assert f"{run / name}: expected no link, got one to '{str(elsewhere)[:40]}" in message
    assert "; remove it" in message  # a long path is cut
    assert contents(tmp_path) == before
    (run / name).unlink()
    elsewhere.rename(run / name)
    assert main(["train", "--resume", str(run), *QUIET]) == 0


def test_a_run_may_itself_be_a_link(half: Path, tmp_path: Path) -> None:
    shutil.copytree(half, tmp_path / "run", symlinks=True)
    (tmp_path / "link").symlink_to("run")
    assert main(["train", "--resume", str(tmp_path / "link"), *QUIET]) == 0
    assert (tmp_path / "run/results.json").is_file()


@pytest.mark.parametrize("length", [None, 4])
def test_a_table_that_becomes_a_link_is_not_written_through(
    tmp_path: Path, length: int | None
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("a,b\n1,2\n")
    (tmp_path / "table.csv").symlink_to(precious)
    with pytest.raises(OSError, match=r"expected a plain file, got a link.*table\.csv"):
        CsvLog(tmp_path / "table.csv", ("a", "b"), length)
    assert precious.read_text() == "a,b\n1,2\n"


def test_a_report_does_not_write_plots_through_a_link(half: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = shutil.copytree(half, tmp_path / "run", symlinks=True)
    (run / "plots").rmdir()
    (run / "plots").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="plots: expected no link"):
        page.write(Run.open(run))


def test_a_log_that_is_a_link_is_not_appended_to(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.txt").symlink_to(precious)
    tried = Attempt(("false",), tmp_path / "run", tmp_path / "recipe.toml", Options())
    with pytest.raises(OSError, match=r"expected a plain file, got a link.*log\.txt"):
        tried.start()
    assert precious.read_text() == "kept"


@pytest.mark.parametrize("name", experiment.WRITTEN)
def test_a_part_of_an_experiment_that_is_a_link_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "grid.toml").write_text("")
    (out / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=f"{name}: expected no link"):
        experiment.Folder.open(out, SimpleNamespace(text="new"), [])
    assert (out / "grid.toml").read_text() == "" and not contents(tmp_path / "elsewhere")


def test_an_old_checkpoint_that_is_a_link_is_removed_and_what_it_leads_to_stays(
    tmp_path: Path,
) -> None:
    other, own = tmp_path / "other", Checkpoints(tmp_path / "own", keep=1)
    elsewhere = Checkpoints(other).save(1, {"a": torch.ones(3)}, {"recipe": ""})
    own.folder.mkdir()
    (own.folder / elsewhere.name).symlink_to(elsewhere)
    own.save(2, {"a": torch.ones(3)}, {"recipe": ""})
    assert [path.name for path in own.steps()] == ["step-0000000002"]
    assert (elsewhere / "state.pt").is_file()
