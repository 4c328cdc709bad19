"""SIGTERM outside of the training loop ends a run with one sentence."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
from helpers.small_runs import QUIET, train

from dsr_kernels.cli import main
from dsr_kernels.errors import Terminated
from dsr_kernels.training import loop, start
from dsr_kernels.training.report import page
from dsr_kernels.training.signals import EarlySigterm, StopRequest, put_off_sigterm


def terminate(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def as_before():
    former = signal.getsignal(signal.SIGTERM)
    yield
    left = signal.signal(signal.SIGTERM, former)
    assert left == former


def the_sentence(capsys) -> str:
    (sentence,) = [line for line in capsys.readouterr().err.split("\n") if line]
    return sentence


def test_before_there_is_a_folder_the_same_command_starts_again(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(start.datasets, "load", terminate)
        assert train(run) == 143
    expected = "dsr: stopped by SIGTERM; nothing was trained: the same command starts again"
    assert the_sentence(capsys) == expected
    assert not run.exists() and train(run, "training.epochs=1") == 0


def test_a_run_without_checkpoint_resumes_from_its_beginning(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    for command in (lambda: train(run), lambda: main(["train", *QUIET, "--resume", str(run)])):
        with monkeypatch.context() as patch:
            patch.setattr(loop.Trainer, "start", terminate)
            assert command() == 143
        assert the_sentence(capsys) == (
            f"dsr: stopped by SIGTERM; {run} keeps the recipe, there is no checkpoint yet; go on "
            f"with: dsr train --resume {run}"
        )
    assert main(["train", *QUIET, "--resume", str(run)]) == 0


def test_a_report_that_was_not_written_is_written_by_resume(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    assert train(run, "training.epochs=1") == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(page, "write", terminate)
        assert main(["train", "--resume", str(run)]) == 143
    assert f"{run} keeps the finished run; its report is not written" in the_sentence(capsys)


def test_training_takes_a_sigterm_that_was_caught_before():
    with EarlySigterm():
        with contextlib.suppress(BaseException):  # as Python does in a `__del__`
            terminate()
        terminate()  # once more, as a cluster does
        with StopRequest() as stop:
            assert stop.signum == signal.SIGTERM


def test_a_sigterm_that_was_put_off_stays_so_until_the_process_has_ended():
    former = signal.getsignal(signal.SIGTERM)
    with EarlySigterm() as early:
        put_off_sigterm(60)
        later = signal.getsignal(signal.SIGTERM)
        assert later != early._on_signal
    assert signal.signal(signal.SIGTERM, former) == later


def test_without_training_it_is_raised_at_once():
    with pytest.raises(Terminated, match="stopped by SIGTERM"), EarlySigterm():
        terminate()


@pytest.mark.parametrize("signum,once_more", [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_the_notice_speaks_of_ctrl_c_after_ctrl_c_only(signum, once_more, capfd):
    with StopRequest("saving a checkpoint"):
        os.kill(os.getpid(), signum)
    notice = capfd.readouterr().err
    assert notice.startswith("\nstopping") and "saving a checkpoint" in notice
    assert ("Ctrl-C" in notice) is once_more and ("SIGTERM" in notice) is not once_more
