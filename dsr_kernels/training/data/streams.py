"""The random numbers of a run: a stream for each purpose, found by its name, so never saved.

Also the types of what data sets hand out, and the part of it that a process takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]  # images [B, C, H, W] and labels [B]
Draw = Callable[[int], torch.Generator]  # the stream of one batch or image


def stream(seed: int, *path: object) -> torch.Generator:
    """The generator for the purpose that `path` names, derived from the seed by a hash."""
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


@dataclass(frozen=True)
class Share:
    """The part of every batch that is process `rank`'s, where `size` processes share it."""

    rank: int = 0
    size: int = 1

    def of(self, count: int) -> slice:
        """Its places in a batch of `count`. Parts lie in the order of ranks; sizes differ by at
        most one.
        """
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)


WHOLE = Share()
