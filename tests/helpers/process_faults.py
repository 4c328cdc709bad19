"""Faults of one process of a run, and what all of them say and leave."""

from __future__ import annotations

from pathlib import Path

from helpers import crew
from helpers.small_runs import QUIET

from dsr_kernels.training import loop

AT = 8  # iterations before the fault
CHANGES = ("training.epochs=1", "checkpoint.every_iterations=3")
IMPATIENT = "distributed.timeout_seconds=4"


def at_iteration(number: int, action) -> None:
    """Has this process call `action(trainer)` in the place of an iteration's forward pass."""
    real = loop.Trainer._forward

    def forward(self, *given):
        if self.model.training and self.position.iteration == number:
            action(self)
        return real(self, *given)

    loop.Trainer._forward = forward


def the_sentence(ended: list[crew.Ended], code: int, *words: str) -> None:
    """Checks that all have ended with the code, and the first one alone with these words."""
    assert [rank.code for rank in ended] == [code] * len(ended), ended
    assert len(ended[0].sentences) == 1, ended
    assert all(word in ended[0].text for word in words), ended
    assert not any(rank.sentences for rank in ended[1:]), ended
    assert "Traceback" not in "".join(rank.text for rank in ended), ended


def goes_on(folder: Path, run: Path, iteration: int = 6) -> None:
    """Checks that the run resumes from the checkpoint of that iteration, to its end."""
    ended = crew.run(folder, ["train", *QUIET, "--resume", str(run)])
    assert [rank.code for rank in ended] == [0, 0], ended
    assert f"continuing after iteration {iteration}\n" in ended[0].text
    assert (run / "results.json").exists()
