"""Runs of several processes go on: bit for bit with as many, with one plain line else."""

from __future__ import annotations

import functools
import random
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers import crew
from helpers.small_runs import QUIET, arguments, artefacts, rows, train

from dsr_kernels.cli import main
from dsr_kernels.training import loop

CHANGES = ("checkpoint.every_iterations=1", "training.epochs=2", "data.augment=crop", "data.pad=1")
AT = 9  # the iteration after which a signal arrives


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """What an undisturbed run of two processes leaves."""
    folder = tmp_path_factory.mktemp("whole")
    ended = crew.run(folder, arguments(folder / "run", *CHANGES))
    assert [rank.code for rank in ended] == [0, 0], ended
    return artefacts(folder / "run")


def newest(run: Path) -> int:
    """Iteration of the newest checkpoint; -1 before the first."""
    steps = sorted(run.glob("checkpoints/step-*"))
    return int(steps[-1].name[5:15]) if steps else -1


def kill_at(victim: int, iteration: int, seconds: float, rank: int) -> None:
    """Has the victim get SIGKILL so many seconds after it begins the iteration."""
    real = loop.Trainer._iteration

    def run_into_it(self, *given):
        if self.position.iteration == iteration:
            threading.Timer(seconds, signal.raise_signal, [signal.SIGKILL]).start()
        return real(self, *given)

    if rank == victim:
        loop.Trainer._iteration = run_into_it


def test_killed_at_random_moments_and_started_again_equals_the_whole_run(whole, tmp_path):
    """As `torchrun --max-restarts` does it: the same command beside one store, until it is done."""
    run, chance, kills = tmp_path / "run", random.Random(5), []
    command, store = arguments(run, *CHANGES), crew.open_store()
    for restarts, iteration in enumerate((0, 7, 12)):
        victim = chance.randrange(2)
        kill = functools.partial(kill_at, victim, iteration, chance.uniform(0, 0.04))
        ended = crew.run(tmp_path, command, prepare=kill, restarts=restarts, store=store)
        assert ended[victim].code == -signal.SIGKILL, ended
        (sentence,) = ended[1 - victim].sentences
        assert f"rank {victim} on " in sentence and " is gone (" in sentence
        kills.append(newest(run))
        assert f"keeps the checkpoint step-{kills[-1]:010}; go on with" in sentence
        assert f"{crew.command(2)} train --resume {run}" in sentence
    ended = crew.run(tmp_path, command, restarts=3, store=store)
    assert [rank.code for rank in ended] == [0, 0], ended
    assert f"continuing after iteration {kills[-1]}\n" in ended[0].text
    assert artefacts(run) == whole, kills
    assert len(set(kills)) == 3, kills


@pytest.mark.parametrize("restarts", [[1, 0], [0, 1], 0], ids=["first", "second", "none"])
def test_a_job_goes_on_whatever_its_agents_have_counted(restarts, tmp_path):
    """An agent that came later has counted less; another number of nodes is no restart."""
    run, store = tmp_path / "run", crew.open_store()
    command = arguments(run, "checkpoint.every_iterations=1", "training.epochs=1")
    kill = functools.partial(kill_at, 1, 3, 0.0)
    ended = crew.run(tmp_path, command, prepare=kill, store=store)
    assert ended[1].code == -signal.SIGKILL, ended
    before = newest(run)
    ended = crew.run(tmp_path, command, restarts=restarts, store=store)
    assert [rank.code for rank in ended] == [0, 0], ended
    assert before < 0 or f"continuing after iteration {before}\n" in ended[0].text


def test_another_job_does_not_go_on_with_a_run_by_being_started_again(tmp_path):
    """Its first try is refused, as the folder is taken, and so are its others."""
    run, store = tmp_path / "run", crew.open_store()
    assert train(run, "training.epochs=1") == 0
    for restarts in range(2):
        ended = crew.run(tmp_path, arguments(run), restarts=restarts, store=store)
        assert [rank.code for rank in ended] == [2, 2], ended
        (sentence,) = ended[0].sentences
        assert f"{run} already holds a run; continue it with `{crew.command(2)}" in sentence


def test_how_processes_wait_may_change_each_time(tmp_path, capsys):
    run, free = tmp_path / "run", ["--set", "distributed.timeout_seconds=77"]
    ended = crew.run(tmp_path, arguments(run, *CHANGES), prepare=terminate_the_second)
    assert [rank.code for rank in ended] == [143, 143], ended
    resume = ["train", *QUIET, "--resume", str(run), *free, "--set", "distributed.bucket_mb=1"]
    ended = crew.run(tmp_path, resume, prepare=say_how_long)
    assert [rank.code for rank in ended] == [0, 0], ended
    assert all(rank.text.startswith("77.0 1.0\n") for rank in ended), ended
    assert main([*resume[:5], "--set", "distributed.sync_batch_norm=true"]) == 2
    assert "the run has another recipe: distributed.sync_batch_norm" in capsys.readouterr().err


def say_how_long(_: int) -> None:
    real = loop.Trainer.start

    def start(self):
        group, settings = torch.distributed.group.WORLD, self.recipe.distributed
        seconds = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
        print(seconds, settings.bucket_mb, file=sys.stderr, flush=True)
        return real(self)

    loop.Trainer.start = start


def stop_the_second(signum: int):
    """Has rank 1 get the signal after iteration AT."""
    real, seen = loop.Trainer._safe_point, []

    def safe_point(self):
        if not seen and self.position.iteration == AT - 1:
            seen.append(signal.raise_signal(signum))  # told to all with the next iteration's sums
        return real(self)

    loop.Trainer._safe_point = safe_point


def interrupt_the_second(rank: int) -> None:
    if rank == 1:
        stop_the_second(signal.SIGINT)


def terminate_the_second(rank: int) -> None:
    if rank == 1:
        stop_the_second(signal.SIGTERM)


@pytest.mark.parametrize("prepare,code", [(interrupt_the_second, 130), (terminate_the_second, 143)])
def test_a_signal_to_one_process_saves_and_ends_all(whole, prepare, code, tmp_path):
    run = tmp_path / "run"
    ended = crew.run(tmp_path, arguments(run, *CHANGES), prepare=prepare)
    assert [rank.code for rank in ended] == [code, code], ended
    (sentence,) = ended[0].sentences
    assert f"stopped after iteration {AT} of 24" in sentence and not ended[1].sentences
    assert newest(run) == AT
    ended = crew.run(tmp_path, ["train", *QUIET, "--resume", str(run)])
    assert [rank.code for rank in ended] == [0, 0], ended
    assert f"continuing after iteration {AT}" in ended[0].text
    assert "bit-identical" not in ended[0].text
    assert artefacts(run) == whole


def test_another_number_of_processes_goes_on_and_says_so(tmp_path, capsys):
    run = tmp_path / "run"
    ended = crew.run(tmp_path, arguments(run, *CHANGES), prepare=terminate_the_second)
    assert [rank.code for rank in ended] == [143, 143], ended
    ended = crew.run(tmp_path, ["train", *QUIET, "--resume", str(run)], 4, interrupt_at_once)
    assert [rank.code for rank in ended] == [130] * 4, ended
    assert newest(run) == AT + 1
    line = "the checkpoint is of 2 processes, this is 4 processes: sums round differently"
    assert ended[0].text.count(line) == 1 and "bit-identical" in ended[0].text
    assert main(["train", *QUIET, "--resume", str(run)]) == 0
    assert "the checkpoint is of 4 processes, this is 1 process: " in capsys.readouterr().out
    assert [row["iteration"] for row in rows(run, "metrics")] == ["12", "24"]


def interrupt_at_once(rank: int) -> None:
    """Has the last of four processes get Ctrl-C before its first iteration ends."""
    real, seen = loop.Trainer._iteration, []

    def iteration(self, *given):
        if not seen:
            seen.append(signal.raise_signal(signal.SIGINT))
        return real(self, *given)

    if rank == 3:
        loop.Trainer._iteration = iteration


def test_a_run_of_one_process_goes_on_with_two(tmp_path, monkeypatch):
    from helpers.small_runs import interrupt_at

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, AT)
        assert train(run, *CHANGES) == 130
    ended = crew.run(tmp_path, ["train", *QUIET, "--resume", str(run)])
    assert [rank.code for rank in ended] == [0, 0], ended
    assert "the checkpoint is of 1 process, this is 2 processes: " in ended[0].text
    assert len(rows(run, "metrics")) == 2


def test_a_finished_run_says_so_once(tmp_path):
    run = tmp_path / "run"
    assert train(run, "training.epochs=1") == 0
    ended = crew.run(tmp_path, ["train", "--quiet", "--resume", str(run)])
    assert [rank.code for rank in ended] == [0, 0], ended
    assert ended[0].text.count("is finished") == 1 and ended[1].text == ""
    assert (run / "report.html").exists()
