"""Whatever one process of a run meets ends all of them with one sentence, and the run goes on."""

from __future__ import annotations

import pytest
import torch
from helpers import crew
from helpers.failing_disk import refuse
from helpers.process_faults import AT, CHANGES, at_iteration, goes_on, the_sentence
from helpers.small_runs import arguments

from dsr_kernels.errors import UsageError
from dsr_kernels.training import loop
from dsr_kernels.training.data import tensors


def fill_the_disk(rank: int) -> None:
    if rank == 0:
        refuse(pytest.MonkeyPatch(), "state.pt", allowed=2)


def test_a_full_disk_of_the_first_process_ends_all(tmp_path):
    run = tmp_path / "run"
    ended = crew.run(tmp_path, arguments(run, *CHANGES), prepare=fill_the_disk)
    the_sentence(
        ended,
        1,
        "state.pt: No space left on device",
        "keeps the checkpoint step-0000000003",
        "make room, then go on",
    )
    goes_on(tmp_path, run, 3)


def lose_the_loss(rank: int) -> None:
    real = loop.Trainer._forward

    def forward(self, *given):
        loss, output = real(self, *given)
        lost = self.model.training and self.position.iteration == AT
        return loss * (torch.nan if lost else 1.0), output

    if rank == 1:
        loop.Trainer._forward = forward


def test_a_loss_that_one_process_loses_stops_all_before_they_step(tmp_path):
    run = tmp_path / "run"
    ended = crew.run(tmp_path, arguments(run, *CHANGES), prepare=lose_the_loss)
    the_sentence(
        ended, 3, f"the loss became nan at iteration {AT + 1} (epoch 1)", "step-0000000006"
    )
    goes_on(tmp_path, run)


def fail(_: object) -> None:
    raise ZeroDivisionError("of the second")


def refuse_an_image(_: object) -> None:
    raise UsageError("n07/x.JPEG: damaged")


def fail_in_the_second(rank: int) -> None:
    if rank == 1:
        at_iteration(AT, fail)


def meet_a_damaged_image(rank: int) -> None:
    if rank == 1:
        at_iteration(AT, refuse_an_image)


def test_what_one_process_refuses_is_said_by_it_alone(tmp_path):
    run = tmp_path / "run"
    ended = crew.run(tmp_path, arguments(run, *CHANGES), prepare=meet_a_damaged_image)
    assert [rank.code for rank in ended] == [2, 2], ended
    assert [rank.sentences for rank in ended] == [[], ["dsr: rank 1: n07/x.JPEG: damaged"]]
    goes_on(tmp_path, run)


def test_an_error_that_nobody_foresaw_ends_all(tmp_path):
    run = tmp_path / "run"
    ended = crew.run(tmp_path, arguments(run, *CHANGES), prepare=fail_in_the_second)
    assert [rank.code for rank in ended] == [1, 1] and not ended[0].sentences, ended
    (sentence,) = ended[1].sentences
    assert sentence.startswith("dsr: rank 1: ZeroDivisionError: of the second; "), sentence
    assert f"{run} keeps the checkpoint step-0000000006; go on with: torchrun" in sentence
    assert ["Traceback" in rank.text for rank in ended] == [False, True], ended
    assert "in fail\n" in ended[1].text
    goes_on(tmp_path, run)


def change_a_weight(trainer: loop.Trainer) -> None:
    with torch.no_grad():
        values = dict(trainer.model.named_parameters())
        next(values[name] for name in values if name.endswith("weight_values"))[0] += 1


def change_a_weight_of_the_second(rank: int) -> None:
    if rank == 1:
        at_iteration(AT, change_a_weight)


def test_processes_whose_models_differ_are_stopped_by_the_layers_name(tmp_path):
    run = tmp_path / "run"
    ended = crew.run(tmp_path, arguments(run, *CHANGES), prepare=change_a_weight_of_the_second)
    the_sentence(
        ended,
        3,
        "iteration 10 (epoch 1): rewire: layer 'fc1': rank 1 has other values",
        "than rank 0; nothing was rewired.",
        "the last good checkpoint is",
        f"go on from it with: {crew.command(2)} train --resume {run}",
    )


def fail_everywhere(rank: int) -> None:
    at_iteration(AT, fail)


def test_an_error_that_all_meet_is_said_by_the_first_alone(tmp_path):
    ended = crew.run(tmp_path, arguments(tmp_path / "run", *CHANGES), 4, fail_everywhere)
    assert [rank.code for rank in ended] == [1] * 4, ended
    assert len(ended[0].sentences) == 1 and ended[0].text.count("Traceback") == 1
    assert [rank.text for rank in ended[1:]] == [""] * 3


def other_version(rank: int) -> None:
    if rank == 1:
        pytest.MonkeyPatch().setattr("dsr_kernels.training.start.version", lambda: "0.0.1")


def other_images(rank: int) -> None:
    real = tensors.TensorSplit.fingerprint

    def fingerprint(self):
        return real(self) + "x"

    if rank == 1:
        tensors.TensorSplit.fingerprint = fingerprint


@pytest.mark.parametrize(
    "prepare,own,words",
    [
        (other_version, [], ("version of dsr_kernels: expected the same in all processes, got",
                             "'0.0.1' on rank 1")),
        (None, ["--set", "optimizer.lr=0.5"],
         ("recipe: optimizer.lr: expected the same in all processes, got", "0.5)] on rank 1")),
        (None, ["--out", "elsewhere"], ("folder of the run: expected the same", "on rank 1")),
        (None, ["--compare-dense"], ("--compare-dense: expected the same", "True on rank 1")),
        (None, ["--device", "cuda"], ("--device: expected the same", "'cuda' on rank 1")),
        (other_images, [], ("the data set: expected the same in all processes, got", "on rank 1")),
    ],
    ids=["version", "recipe", "out", "compare", "device", "data"],
)  # fmt: skip
def test_processes_that_differ_are_refused_before_there_is_a_folder(prepare, own, words, tmp_path):
    run = tmp_path / "run"
    command = arguments(run, *CHANGES)
    ended = crew.run(tmp_path, lambda rank: command + own * rank, prepare=prepare)
    the_sentence(ended, 2, *words)
    assert not run.exists()


def lose_a_statistic(rank: int) -> None:
    """Has rank 0 alone have running means that are not finite when a rewire fails everywhere."""
    if rank == 1:
        at_iteration(AT, change_a_weight)
    real = loop.Trainer._rewire

    def rewire(self):
        if rank == 0 and self.position.iteration > AT:
            for name, buffer in self.model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.fill_(torch.nan)
        return real(self)

    loop.Trainer._rewire = rewire


def test_running_statistics_of_one_process_do_not_decide_why_all_stop(tmp_path):
    command = arguments(tmp_path / "run", *CHANGES, "rewiring.every=[[0, 10]]", kind="wrn")
    ended = crew.run(tmp_path, command, prepare=lose_a_statistic)
    the_sentence(ended, 3, "iteration 10 (epoch 1): rewire: layer ", "rank 1 has other values")
