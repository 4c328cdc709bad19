"""Ctrl-C while `dsr train` computes: it ends with the iteration under way, not later."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from helpers.small_runs import train

from dsr_kernels.rewiring.rewirer import Rewirer
from dsr_kernels.training import loop

# A method of the iteration's, and how far training is when it is called: 12 iterations an epoch.
WITHIN = {
    "the forward pass": (loop.Trainer, "_forward", 5),
    "a rewire": (Rewirer, "rewire", 2),
}


@pytest.mark.parametrize("within", WITHIN)
def test_the_iteration_under_way_is_the_last(
    within: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    owner, name, call = WITHIN[within]
    real, calls = getattr(owner, name), []

    def interrupted(self, *args):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args)

    monkeypatch.setattr(owner, name, interrupted)
    assert train(tmp_path / "run") == 130
    iteration = 5 if within == "the forward pass" else 10  # a rewire every five
    assert f"stopped after iteration {iteration} of 36" in capsys.readouterr().err
    assert len(calls) == call


def test_an_evaluation_ends_with_the_batch_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real, batches = loop.Trainer._forward, []

    def interrupted(self, *args):
        if not self.model.training:
            batches.append(None)
            if len(batches) == 1:
                os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args)

    monkeypatch.setattr(loop.Trainer, "_forward", interrupted)
    assert train(tmp_path / "run", "training.eval_batch_size=10") == 130
    assert "stopped after iteration 12 of 36" in capsys.readouterr().err
    assert len(batches) == 1
