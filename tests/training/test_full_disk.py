"""A disk that is full or refuses: one sentence says what is kept; the run goes on from there."""

import errno
import os
import shutil

import pytest
from helpers.failing_disk import refuse
from helpers.small_runs import QUIET, arguments, artefacts, train

from dsr_kernels.cli import main
from dsr_kernels.training.run.checkpoint import Checkpoints

SHORT = ("training.epochs=1", "checkpoint.every_iterations=6")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(run, *SHORT) == 0
    return artefacts(run)


def failed(capsys, run, *words):
    """Checks the sentence of a run that could not be written; returns it."""
    shown = capsys.readouterr().err
    assert shown.startswith("dsr: ") and shown.count("\n") == 1, shown
    assert all(word in shown for word in (*words, f"dsr train --resume {run}")), shown
    return shown


@pytest.mark.parametrize(
    "name,allowed,kept",
    [
        ("metrics.csv", 0, "no checkpoint yet"),
        ("run.json.tmp", 0, "no checkpoint yet"),
        ("weights.safetensors", 0, "no checkpoint yet"),
        ("rewires.csv", 2, "keeps the checkpoint step-0000000000"),
        ("weights.safetensors", 1, "keeps the checkpoint step-0000000000"),
        ("state.pt", 1, "keeps the checkpoint step-0000000000"),
        ("manifest.json", 2, "keeps the checkpoint step-0000000006"),
        ("metrics.csv", 1, "keeps the checkpoint step-0000000012"),
        ("results.json.tmp", 0, "keeps the checkpoint step-0000000012"),
    ],
)
def test_a_run_goes_on_exactly_where_the_disk_was_full(
    whole, name, allowed, kept, tmp_path, capsys
):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        paths = refuse(patch, name, allowed=allowed)
        assert train(run, *SHORT) == 1
    failed(capsys, run, f"{paths[-1]}: No space left on device", kept, "make room")
    assert not list(run.glob("checkpoints/.part*")) and not list(run.glob(".*.tmp"))
    assert main(["train", "--resume", str(run), *QUIET]) == 0
    assert artefacts(run) == whole


def test_a_report_that_found_no_room_is_written_by_resume(tmp_path, capsys):
    run = tmp_path / "run"
    command = [part for part in arguments(run, *SHORT) if part != "--no-report"]
    with pytest.MonkeyPatch.context() as patch:
        refuse(patch, "report.html.tmp")
        assert main(command) == 1
    failed(capsys, run, "No space left", "keeps the finished run; its report is not written")
    assert not (run / "report.html").exists()
    with pytest.MonkeyPatch.context() as patch:
        refuse(patch, "accuracy.png.tmp")
        assert main(["train", "--resume", str(run)]) == 1
    failed(capsys, run, "accuracy.png.tmp: No space left")
    assert main(["train", "--resume", str(run)]) == 0
    assert f"report: {run / 'report.html'}" in capsys.readouterr().out
    assert (run / "report.html").stat().st_size > 1000


@pytest.mark.parametrize(
    "code,words",
    [
        (errno.EDQUOT, ("Disk quota exceeded", "make room")),
        (errno.EIO, ("Input/output error", "once that is mended")),
        (errno.EROFS, ("Read-only file system", "once that is mended")),
    ],
)
def test_other_refusals_say_their_reason(whole, code, words, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        refuse(patch, "state.pt", code, allowed=1)
        assert train(run, *SHORT) == 1
    failed(capsys, run, *words)
    assert main(["train", "--resume", str(run), *QUIET]) == 0
    assert artefacts(run) == whole


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_checkpoint_that_cannot_be_made_durable_leaves_the_former(whole, call, tmp_path, capsys):
    run = tmp_path / "run"
    real, calls = getattr(os, call), []

    def fail(*args):
        if (run / "checkpoints/step-0000000000").exists() and "step-0000000006" in str(
            list((run / "checkpoints").iterdir())
        ):
            calls.append(args)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, fail)
        assert train(run, *SHORT) == 1
    assert calls
    failed(capsys, run, "Input/output error", "keeps the checkpoint step-0000000000")
    assert main(["train", "--resume", str(run), *QUIET]) == 0
    assert artefacts(run) == whole


def test_events_that_find_no_room_stop_the_run_in_one_sentence(whole, tmp_path, capfd):
    from tensorboard.summary.writer.record_writer import RecordWriter

    run = tmp_path / "run"

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordWriter, "write", write)
        assert train(run, *SHORT) == 1
    failed(capfd, run, f"{run / 'tensorboard'}: No space left on device")
    assert main(["train", "--resume", str(run), *QUIET]) == 0
    assert artefacts(run) == whole


def when_saved(monkeypatch, number, action):
    """Calls `action` behind the checkpoint of that number, counted from 1."""
    real, saved = Checkpoints.save, []

    def save(self, *args):
        path = real(self, *args)
        saved.append(path)
        if len(saved) == number:
            action()
        return path

    monkeypatch.setattr(Checkpoints, "save", save)


def test_a_folder_that_is_removed_while_it_is_written_is_named(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    when_saved(monkeypatch, 2, lambda: shutil.rmtree(run))
    assert train(run, *SHORT) == 1
    shown = capsys.readouterr().err
    assert f"the folder {run} is gone" in shown and shown.count("\n") == 1


def test_a_table_that_is_removed_while_it_is_written_is_named(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    when_saved(monkeypatch, 2, (run / "rewires.csv").unlink)
    assert train(run, *SHORT) == 1
    failed(capsys, run, "rewires.csv: removed while the run writes it", "step-0000000006")


def test_memory_that_runs_out_is_one_sentence(tmp_path, capsys, monkeypatch):
    def fail(self, *args):
        raise MemoryError

    monkeypatch.setattr("dsr_kernels.training.loop.Trainer._iteration", fail)
    assert train(tmp_path / "run", *SHORT) == 1
    shown = capsys.readouterr().err
    assert "out of memory after iteration 0" in shown and "training.batch_size" in shown
    assert shown.count("\n") == 1
    monkeypatch.setattr("dsr_kernels.training.parts.build_model", fail)
    assert train(tmp_path / "other", *SHORT) == 2
    assert "out of memory while building the model" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_an_output_that_cannot_be_written_ends_with_code_1(tmp_path, monkeypatch):
    with open("/dev/full", "w") as full, open("/dev/full", "w") as errors:
        monkeypatch.setattr("sys.stdout", full)
        monkeypatch.setattr("sys.stderr", errors)
        assert train(tmp_path / "run", *SHORT) == 1
        assert main(["train", "--list"]) == 1
        monkeypatch.undo()
        for file in (full, errors):
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
