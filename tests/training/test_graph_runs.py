"""`dsr train` on a device that runs ahead: graphs, numbers that are read later, the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import graph_stand_in
from helpers.graph_stand_in import Graph
from helpers.small_runs import QUIET, artefacts, interrupt_at, rows, train
from torch.utils._python_dispatch import TorchDispatchMode

from dsr_kernels.cli import main
from dsr_kernels.training import loop, placement
from dsr_kernels.training.queue import READ_EVERY, Queue


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The CPU is a device that runs ahead, and has graphs."""
    graph_stand_in.use(monkeypatch)
    monkeypatch.setattr(placement, "runs_ahead", lambda device: True)
    return monkeypatch


def both(folder: Path, ahead: pytest.MonkeyPatch, *changes: str, kind: str = "lenet") -> Path:
    """A run with graphs; asserts that one without them has left the same."""
    assert train(folder / "graphs", *changes, kind=kind) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "runs_ahead", lambda device: False)
        assert train(folder / "plain", *changes, kind=kind) == 0
    assert artefacts(folder / "graphs") == artefacts(folder / "plain")
    return folder / "graphs"


@pytest.mark.parametrize(
    "kind,changes",
    [
        ("lenet", ["optimizer.l1=0.0001", "data.augment=crop"]),
        ("lenet", ["method=rigl"]),
        ("lenet", ["method=dense", "optimizer.lr=[[0, 0.1], [1, 0.05]]"]),
        ("lenet", ["training.precision=bfloat16"]),
        ("wrn", ["model.fused=false"]),
    ],
    ids=["dsr, l1", "rigl", "dense, a schedule", "bfloat16", "wrn"],
)
def test_a_run_is_that_without_graphs(
    kind: str, changes: list[str], tmp_path: Path, ahead: pytest.MonkeyPatch
) -> None:
    run = both(tmp_path, ahead, *changes, kind=kind)
    assert Graph.replays >= 5
    assert "method=dense" in changes or len(rows(run, "rewires")) > 2


class Onlooker(TorchDispatchMode):
    """Does nothing; but with it, as in a capture of the stand-in, ops go by torch's dispatcher."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return op(*args, **(kwargs or {}))


def test_a_fused_model_is_captured(tmp_path: Path, ahead: pytest.MonkeyPatch) -> None:
    """By the dispatcher a fused step on a CPU sums in another order than without it."""
    real = loop.Trainer._step

    def watched(*args):
        with Onlooker():
            return real(*args)

    ahead.setattr(loop.Trainer, "_step", watched)
    assert train(tmp_path / "graphs", kind="wrn") == 0
    assert Graph.replays >= 5
    assert train(tmp_path / "plain", "training.cuda_graph=false", kind="wrn") == 0
    assert artefacts(tmp_path / "graphs") == artefacts(tmp_path / "plain")


def test_without_graphs_numbers_are_read_later_all_the_same(
    tmp_path: Path, ahead: pytest.MonkeyPatch
) -> None:
    both(tmp_path, ahead, "training.cuda_graph=false")
    assert Graph.replays == 0


@pytest.mark.parametrize("iteration", [7, 17])
def test_a_resume_is_exact_with_and_without_graphs(
    iteration: int, tmp_path: Path, ahead: pytest.MonkeyPatch
) -> None:
    assert train(tmp_path / "whole") == 0
    run = tmp_path / "parts"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, iteration)
        assert train(run) == 130
    again = ["train", "--resume", str(run), *QUIET, "--set", "training.cuda_graph=false"]
    assert main(again) == 0
    assert artefacts(run) == artefacts(tmp_path / "whole")


def test_a_fallback_says_one_line(tmp_path: Path, ahead: pytest.MonkeyPatch, capsys) -> None:
    real = loop.hits
    ahead.setattr(
        loop, "hits", lambda output, labels: real(output, labels) + 0 * output.sum().item()
    )
    run = tmp_path / "run"
    assert train(run, "training.epochs=1", "rewiring.stop_epoch=1") == 0
    shown = capsys.readouterr().out
    assert shown.count("no CUDA graph, steps are eager: RuntimeError: operation not permitted") == 1
    assert Graph.replays == 0


@pytest.mark.parametrize("size", [READ_EVERY, 5])
@pytest.mark.parametrize("method", ["static", "dsr"])
def test_a_loss_that_is_nan_is_named_later_and_nothing_is_saved_after_it(
    size: int, method: str, tmp_path: Path, ahead: pytest.MonkeyPatch, capsys
) -> None:
    """At iteration 8 of 12 in an epoch; dsr rewires after 5 and 10."""
    real, seen = loop.Trainer._queue_iteration, []

    def poisoned(self, queue, images, labels) -> None:
        seen.append(None)
        return real(self, queue, images * float("nan") if len(seen) == 8 else images, labels)

    ahead.setattr(loop.Trainer, "_queue_iteration", poisoned)
    ahead.setattr(loop, "Queue", lambda device: Queue(device, size))
    run = tmp_path / "run"
    assert train(run, f"method={method}", "checkpoint.every_iterations=4") == 3
    error = capsys.readouterr().err
    assert "the loss became nan at iteration 8 (epoch 1)" in error
    assert "the last good checkpoint is" in error
    saved = sorted(path.name for path in (run / "checkpoints").iterdir() if path.name != "latest")
    assert [int("".join(filter(str.isdigit, name))) for name in saved] == [0, 4]
    assert not rows(run, "metrics")


def test_a_queue_keeps_numbers_that_are_overwritten() -> None:
    queue, loss, correct = Queue(torch.device("cpu"), 3), torch.zeros(()), torch.zeros(()).long()
    assert queue.take() == []
    for number in range(3):
        loss.fill_(0.1 + number), correct.fill_(number)
        assert not queue.is_full
        queue.put(number + 1, loss, correct)
    assert queue.is_full
    expected = [torch.tensor(0.1 + number).item() for number in range(3)]
    assert queue.take() == [(1, expected[0], 0), (2, expected[1], 1), (3, expected[2], 2)]
    assert queue.take() == [] and not queue.is_full
