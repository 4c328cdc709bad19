"""Where a run stands: part of every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Position:
    """Where training stands, and the sums of the epoch under way."""

    epoch: int = 0
    batch: int = 0  # of this epoch, done
    iteration: int = 0  # of the whole run, done
    loss: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0

    def add(self, loss: float, correct: int, images: int, seconds: float) -> None:
        """One more iteration: its mean loss, images given their label, images, time."""
        self.batch += 1
        self.iteration += 1
        self.loss += loss * images
        self.correct += correct
        self.seen += images
        self.seconds += seconds

    def next_epoch(self) -> Position:
        return Position(epoch=self.epoch + 1, iteration=self.iteration)
