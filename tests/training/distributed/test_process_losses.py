"""Processes that are killed or do not answer are named, and the run goes on."""

from __future__ import annotations

import functools
import os
import signal

import pytest
from helpers import crew
from helpers.process_faults import AT, CHANGES, IMPATIENT, at_iteration, goes_on, the_sentence
from helpers.small_runs import QUIET, arguments

from dsr_kernels.errors import UsageError
from dsr_kernels.training import failures, joining, loop

HOST = os.uname().nodename


def die(victim: int, rank: int) -> None:
    if rank == victim:
        at_iteration(AT, lambda _: signal.raise_signal(signal.SIGKILL))


@pytest.mark.parametrize("victim,size", [(0, 2), (1, 2), (2, 4)])
def test_a_process_that_is_killed_is_named_by_the_others(victim, size, tmp_path):
    run = tmp_path / "run"
    ended = crew.run(tmp_path, arguments(run, *CHANGES), size, functools.partial(die, victim))
    assert ended.pop(victim).code == -signal.SIGKILL, ended
    the_sentence(
        ended,
        1,
        f"dsr: rank {victim} on {HOST} is gone (",
        f"{run} keeps the checkpoint step-0000000006",
        f"go on with: {crew.command(size)} train --resume {run}",
    )
    if size == 2:
        goes_on(tmp_path, run)


def stop_the_second(rank: int) -> None:
    if rank == 1:
        at_iteration(AT, lambda _: os.kill(os.getpid(), signal.SIGSTOP))


def test_a_process_that_does_not_answer_is_named_after_the_timeout(tmp_path):
    run = tmp_path / "run"
    command = arguments(run, *CHANGES, IMPATIENT)
    with crew.crew(tmp_path, command, prepare=stop_the_second) as ranks:
        (first,) = ranks.wait([0])
        ranks.signal(1, signal.SIGCONT)  # torchrun would kill it
        (second,) = ranks.wait([1])
    assert second.code == 1 and not second.sentences, second
    the_sentence(
        [first],
        1,
        f"rank 1 on {HOST} has not answered for 4 seconds (distributed.timeout_seconds)",
        "keeps the checkpoint step-0000000006",
        f"{crew.command(2)} train --resume {run}",
    )
    goes_on(tmp_path, run)


@pytest.mark.parametrize(
    "text",
    [
        "[/pytorch/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [::1]",
        "Connection closed by peer [127.0.0.1]:11162. This is typically caused by a crash.",
        "Application timeout caused pair closure",
        "[../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 2000ms for recv operation",
        "Timed out waiting 1800000ms for send operation to complete",
        "writev [127.0.0.1]:3: Connection reset by peer",
        "NCCL error in: ProcessGroupNCCL.cpp:1, unhandled system error",
    ],
)
def test_what_torch_says_of_a_broken_exchange_is_known(text):
    assert failures.is_broken_exchange(RuntimeError(text))
    outer = RuntimeError("rewiring failed at iteration 5")
    outer.__cause__ = RuntimeError(text)
    assert failures.is_broken_exchange(outer)
    assert not failures.is_broken_exchange(UsageError(text))
    assert not failures.is_broken_exchange(RuntimeError("mat1 and mat2 shapes"))


def die_before_the_first_checkpoint(rank: int) -> None:
    if rank == 1:
        loop.Trainer.start = lambda _: signal.raise_signal(signal.SIGKILL)


def test_a_process_that_is_killed_early_leaves_a_run_that_goes_on(tmp_path):
    run = tmp_path / "run"
    ended = crew.run(tmp_path, arguments(run, *CHANGES), prepare=die_before_the_first_checkpoint)
    assert ended[1].code == -signal.SIGKILL, ended
    the_sentence(
        ended[:1],
        1,
        f"rank 1 on {HOST} is gone",
        f"{run} keeps the recipe, there is no checkpoint yet",
        f"go on with: {crew.command(2)} train --resume {run}",
    )
    ended = crew.run(tmp_path, ["train", *QUIET, "--resume", str(run)])
    assert [rank.code for rank in ended] == [0, 0], ended


def terminate_at_the_start(victim: int | None, rank: int) -> None:
    """As torchrun, once the victim is gone; None: as torchrun that has got SIGTERM itself."""
    signum = signal.SIGKILL if rank == victim else signal.SIGTERM
    loop.Trainer.start = lambda _: signal.raise_signal(signum)


def test_sigterm_that_comes_before_training_is_that_of_a_lost_process(tmp_path):
    run = tmp_path / "run"
    prepare = functools.partial(terminate_at_the_start, 1)
    ended = crew.run(tmp_path, arguments(run, *CHANGES), 4, prepare)
    assert ended.pop(1).code == -signal.SIGKILL, ended
    the_sentence(
        ended,
        1,
        f"dsr: rank 1 on {HOST} is gone or has not answered (SIGTERM came); {run} keeps the "
        "recipe, there is no checkpoint yet",
        f"go on with: {crew.command(4)} train --resume {run}",
    )


def test_sigterm_to_all_before_training_is_one_sentence(tmp_path):
    run = tmp_path / "run"
    prepare = functools.partial(terminate_at_the_start, None)
    ended = crew.run(tmp_path, arguments(run, *CHANGES), prepare=prepare)
    (sentence,) = [sentence for rank in ended for sentence in rank.sentences]
    assert [rank.code for rank in ended] == [143, 143], ended
    assert f"stopped by SIGTERM; {run} keeps the recipe, there is no checkpoint yet" in sentence
    assert sentence.endswith(f"go on with: {crew.command(2)} train --resume {run}")
    ended = crew.run(tmp_path, ["train", *QUIET, "--resume", str(run)])
    assert [rank.code for rank in ended] == [0, 0], ended


def terminate_before_they_meet(_: int) -> None:
    joining.job_in = lambda _: signal.raise_signal(signal.SIGTERM)


def test_before_processes_have_met_the_first_one_says_it(tmp_path):
    run = tmp_path / "run"
    ended = crew.run(tmp_path, arguments(run, *CHANGES), prepare=terminate_before_they_meet)
    the_sentence(ended, 143, "dsr: stopped by SIGTERM; nothing was trained: the same command")
    assert not run.exists()


@pytest.mark.parametrize(
    "error,names,words",
    [
        ("Connection closed by peer", ["rank 1 on a"], "rank 1 on a is gone (Connection"),
        ("Connection closed by peer", ["rank 1 on a", "rank 2 on b"],
         "rank 1 on a and rank 2 on b are gone or have not answered (Connection"),
        ("Timed out waiting 4ms", ["rank 1 on a"], "rank 1 on a has not answered for 4 seconds"),
        ("Timed out waiting 4ms", ["rank 1 on a", "rank 2 on b"],
         "rank 1 on a and rank 2 on b have not answered for 4 seconds"),
        ("Connection closed by peer", [], "another process of the run is gone (Connection"),
    ],
)  # fmt: skip
def test_the_sentence_says_no_more_of_lost_processes_than_is_known(error, names, words):
    assert failures._reason(RuntimeError(error), 4.0, names).startswith(words)


def test_a_process_that_never_comes_is_one_sentence(tmp_path):
    run = tmp_path / "run"
    command = arguments(run, *CHANGES, IMPATIENT)
    with crew.crew(tmp_path, command, prepare=stay_away) as ranks:
        (first,) = ranks.wait([0])
    (sentence,) = first.sentences
    assert first.code == 1 and "have not found each other within 4 seconds" in sentence
    assert sentence.endswith(": rank 1 has not come"), sentence
    assert not run.exists()


def stay_away(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
