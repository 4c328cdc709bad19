"""The random numbers of a run: a stream for each purpose, found by its name, so never saved.

Also the types of what data sets hand out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]  # images [B, C, H, W] and labels [B]
Draw = Callable[[int], torch.Generator]  # the stream of one batch or image


def stream(seed: int, *path: object) -> torch.Generator:
    """The generator for the purpose that `path` names, derived from the seed by a hash."""
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
