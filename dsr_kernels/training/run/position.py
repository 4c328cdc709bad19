"""Where a run stands: part of every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Position:
    """Where training stands, and the sums of the epoch under way."""

    epoch: int = 0
    batch: int = 0  # how many batches of this epoch are done
    iteration: int = 0  # how many iterations of the run are done
    loss: float = 0.0  # summed over the images of this epoch, as the next three
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0

    def advance(self, seconds: float) -> None:
        """Counts one more iteration, which took so long; its loss may not be known yet."""
        self.batch += 1
        self.iteration += 1
        self.seconds += seconds

    def measured(self, loss: float, correct: int, images: int) -> None:
        """Adds what an iteration was, in the order of iterations.

        Args:
            loss: the mean over its images.
            correct: how many of its images were classified correctly.
            images: how many images it had.
        """
        self.loss += loss * images
        self.correct += correct
        self.seen += images

    def means(self) -> tuple[float, float] | None:
        """Loss and accuracy over the images of this epoch; None: nothing is known yet."""
        return (self.loss / self.seen, self.correct / self.seen) if self.seen else None

    def timing(self) -> dict[str, float]:
        """The row of timings.csv for this epoch."""
        return {
            "epoch": self.epoch + 1,
            "iteration": self.iteration,
            "train_seconds": self.seconds,
            "images": self.seen,
            "images_per_second": self.seen / self.seconds,
        }

    def next_epoch(self) -> Position:
        """The beginning of the next epoch."""
        return Position(epoch=self.epoch + 1, iteration=self.iteration)
