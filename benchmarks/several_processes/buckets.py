"""What a step sends, and when: a communication hook that keeps a record of each bucket."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
    bf16_compress_hook,
)


class Watch:
    """Buckets of the steps since `clear`: bytes, when each was handed over and had been averaged.

    `hook` averages as torch does without one, or as bf16_compress_hook.
    """

    def __init__(self, bf16: bool) -> None:
        self.bf16 = bf16
        self.clear()

    def clear(self) -> None:
        self.bytes: list[int] = []
        self.handed_over: list[float] = []
        self.averaged: list[float | None] = []

    def hook(self, state: Any, bucket):  # torch checks annotations, and takes no strings
        buffer, index = bucket.buffer(), len(self.bytes)
        self.bytes.append(buffer.numel() * (2 if self.bf16 else buffer.element_size()))
        self.handed_over.append(time.perf_counter())
        self.averaged.append(None)
        average = bf16_compress_hook if self.bf16 else allreduce_hook

        def note(future: torch.futures.Future) -> torch.Tensor:
            self.averaged[index] = time.perf_counter()
            return future.value()

        return average(state, bucket).then(note)

    def share_within_backward(self) -> float:
        """Of the bytes: those handed over before the last gradient was there."""
        return sum(self.bytes[:-1]) / sum(self.bytes)

    def share_averaged_within_backward(self) -> float:
        """Of the bytes: those that all processes had averaged when the last bucket was full."""
        pairs = zip(self.bytes, self.averaged, strict=True)
        end = self.handed_over[-1]
        done = sum(count for count, when in pairs if when is not None and when <= end)
        return done / sum(self.bytes)


def loopback_bytes() -> int | None:
    """All that this machine's interface `lo` has sent; None where nothing counts it."""
    try:
        lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    counters = (line.split(":")[1].split() for line in lines if line.strip().startswith("lo:"))
    return next((int(fields[8]) for fields in counters), None)
