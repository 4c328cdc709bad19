"""What several processes cannot do together is refused before a run begins."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import crew
from helpers.small_runs import QUIET, arguments, refused, train

from dsr_kernels.errors import UsageError
from dsr_kernels.training import placement
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.run.folder import resume_command
from dsr_kernels.training.world import World, _nearest

ALL = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def two(monkeypatch):
    """What the first of two processes sees, before they exchange anything."""
    world = World()
    monkeypatch.setattr(world, "size", 2)
    return world


def recipe(*changes: str):
    return recipes.load("lenet300-digits", list(changes))


def test_batches_and_options_that_two_processes_cannot_share(two):
    words = (
        r"training\.batch_size: .* of the 2 processes.*got 51\. .*: train it by 1 or 3 processes"
    )
    with pytest.raises(UsageError, match=words):
        two.check(recipe("training.batch_size=51"), placement.CPU, {})
    with pytest.raises(UsageError, match="--compare-dense: times one process"):
        two.check(recipe(), placement.CPU, {"compare_dense": True})
    with pytest.raises(UsageError, match=r"distributed\.sync_batch_norm: .*--device cuda"):
        two.check(recipe("distributed.sync_batch_norm=true"), placement.CPU, {})
    two.check(recipe(), placement.CPU, {"compare_dense": False})
    World().check(
        recipe("training.batch_size=51", "distributed.sync_batch_norm=true"),
        placement.CPU,
        {"compare_dense": True},
    )


@pytest.mark.parametrize(
    "batch,size,numbers",
    [(100, 3, [2, 4]), (100, 8, [5, 10]), (2, 3, [2]), (8191, 2, [1]), (2**61 - 1, 9, [1])],
)
def test_the_numbers_of_processes_that_divide_a_batch(batch, size, numbers):
    assert _nearest(batch, size) == numbers


def test_processes_take_a_gpu_each(two):
    two.local_rank = 1
    assert two.device_name("cpu") == "cpu" and two.device_name("cuda") == "cuda:1"
    with pytest.raises(UsageError, match=r"--device: expected cpu or cuda with 2 .*'cuda:0'"):
        two.device_name("cuda:0")
    assert World().device_name("cuda:0") == "cuda:0"


def said_once(ended: list[crew.Ended], by: int, *words: str) -> None:
    """Checks that all have ended with code 2, and that rank `by` alone says why."""
    assert [rank.code for rank in ended] == [2] * len(ended), ended
    speaker = ended.pop(by)
    assert speaker.text.count("\n") == 1 and len(speaker.sentences) == 1, speaker
    assert all(word in speaker.text for word in words), speaker
    assert [rank.text for rank in ended] == [""] * len(ended), ended


@pytest.mark.parametrize(
    "changes,options,words",
    [
        ([], ["--compare-dense"], "dsr: --compare-dense: times one process"),
        (["start.run=nowhere"], [], "dsr: "),
        ([], ["--recipe", "lenet301"], "dsr: --recipe: unknown recipe"),
        ([], ["--device", "cuda"], "dsr: --device cuda"),
        (["data.name=mnist"], ["--data-dir", "nowhere"], "dsr: data set mnist not found"),
    ],
    ids=["compare", "start", "recipe", "device", "data"],
)
def test_what_all_refuse_is_said_once(changes, options, words, tmp_path):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run = tmp_path / "run"
    ended = crew.run(tmp_path, [*arguments(run, *changes), *options], size=4)
    said_once(ended, 0, words)
    assert not run.exists()


def test_a_run_that_is_not_there_or_damaged_is_said_once(tmp_path):
    run = tmp_path / "run"
    ended = crew.run(tmp_path, ["train", *QUIET, "--resume", str(run)])
    said_once(ended, 0, f"dsr: {run} holds no run")
    assert train(run, "training.epochs=1", "checkpoint.keep=1") == 0
    (run / "results.json").unlink()
    (run / "checkpoints/latest/state.pt").write_bytes(b"")
    ended = crew.run(tmp_path, ["train", *QUIET, "--resume", str(run)])
    said_once(ended, 0, "truncated checkpoint: state.pt has 0 bytes")


def test_a_recipe_that_one_process_does_not_find_ends_all(tmp_path):
    command = arguments(tmp_path / "run")
    ended = crew.run(tmp_path, lambda rank: command + ["--recipe", "lenet301"] * (rank == 2), 3)
    said_once(ended, 2, "dsr: rank 2: ", "unknown recipe")


@pytest.mark.parametrize(
    "variables,words",
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT, as"),
        ({**ALL, "WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number, .* got 'two'"),
        ({**ALL, "LOCAL_RANK": "gpu"}, "LOCAL_RANK: expected a whole number, .* got 'gpu'"),
        ({**ALL, "RANK": "-1"}, "RANK: expected a whole number, .* got '-1'"),
        ({**ALL, "RANK": "2"}, "RANK: expected less than WORLD_SIZE=2, got 2"),
    ],
)
def test_half_of_torchruns_variables_are_refused(variables, words, tmp_path, capsys, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    sentence = refused(capsys, *arguments(tmp_path / "run"))
    assert re.search(words, sentence) and "start with torchrun, or unset RANK" in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "nodes,words",
    [("1", "torchrun --nproc-per-node 8 -m"), ("4", "torchrun --nnodes 4 ... --nproc-per-node 8 ")],
)
def test_the_command_that_goes_on_starts_as_many_processes(nodes, words, monkeypatch, tmp_path):
    assert resume_command(tmp_path) == f"dsr train --resume {tmp_path}"
    for name, value in {**ALL, "LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": nodes}.items():
        monkeypatch.setenv(name, value)
    assert resume_command(tmp_path).startswith(words)
    assert resume_command(tmp_path).endswith(f"dsr_kernels train --resume {tmp_path}")


def test_one_process_of_torchrun_is_an_ordinary_run(tmp_path, monkeypatch):
    """And WORLD_SIZE alone, which clusters set for their own ends, means nothing."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert train(tmp_path / "one", "training.epochs=1") == 0
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert train(tmp_path / "two", "training.epochs=1") == 0


@pytest.mark.parametrize(
    "change,words",
    [
        ("distributed.timeout_seconds=0", "distributed.timeout_seconds"),
        ("distributed.bucket_mb=0", "distributed.bucket_mb"),
        ("distributed.sync_batch_norm=1", "distributed.sync_batch_norm"),
    ],
)
def test_settings_out_of_range_are_refused(change, words, tmp_path, capsys):
    assert words in refused(capsys, *arguments(tmp_path / "run", change))
