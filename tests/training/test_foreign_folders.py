"""Run folders from elsewhere: links in the place of locks and temporary files are not followed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsr_kernels.errors import UsageError
from dsr_kernels.training.run import out_folder
from dsr_kernels.training.run.files import temporary, write_atomically


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
