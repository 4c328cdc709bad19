"""Numbers of iterations that a GPU has yet to make, read together, for to read one is to wait."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

READ_EVERY = 20  # iterations


class Measured(NamedTuple):
    """What one iteration was."""

    iteration: int  # 1 for the first of the run
    loss: float
    correct: int


class Queue:
    """Losses and numbers of correct images, on the device until they are read."""

    def __init__(self, device: torch.device, size: int = READ_EVERY) -> None:
        self._losses = torch.zeros(size, dtype=torch.float64, device=device)
        self._correct = torch.zeros(size, dtype=torch.int64, device=device)
        self._iterations: list[int] = []

    @property
    def is_full(self) -> bool:
        return len(self._iterations) == len(self._losses)

    @torch.no_grad()
    def put(self, iteration: int, loss: Tensor, correct: Tensor) -> None:
        """Copies both numbers, which the next iteration may overwrite. It must not be full."""
        place = len(self._iterations)
        self._losses[place].copy_(loss)
        self._correct[place].copy_(correct)
        self._iterations.append(iteration)

    def take(self) -> list[Measured]:
        """All there is, in order. Waits for the device."""
        taken, self._iterations = self._iterations, []
        if not taken:
            return []
        losses, correct = self._losses.tolist(), self._correct.tolist()
        return list(map(Measured, taken, losses, correct))
