"""Times single operations and whole steps on a GPU, by CUDA events.

An operation starts with cold caches: a buffer larger than the L2 cache is overwritten between two
runs. The host is ahead: a kernel that only sleeps lets it queue the work that follows, so no gap
between launches counts. On the CPU, to try the benchmarks, it takes plain wall times.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

WARM_UP = 3
HEAD_START = 3_000_000  # cycles before the first run: one or two milliseconds
PAUSE = 100_000  # cycles before each: some 60 microseconds
FLUSHED = 4  # times the size of the L2 cache


class Clock:
    """Takes the times of whatever it is given, `rounds` of them for an operation."""

    def __init__(self, device: torch.device, rounds: int) -> None:
        self.device, self.rounds = device, rounds
        self.cuda = device.type == "cuda"
        if self.cuda:
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self.flushed = torch.empty(FLUSHED * cache, dtype=torch.uint8, device=device)

    def operation(self, run: Callable[[], object]) -> dict[str, float]:
        """{"min", "median"} in ms of a run from cold caches."""
        for _ in range(WARM_UP):
            run()
        if not self.cuda:
            return self._wall(run, self.rounds)
        torch.cuda.synchronize()
        torch.cuda._sleep(HEAD_START)
        events = []
        for _ in range(self.rounds):
            torch.cuda._sleep(PAUSE)
            self.flushed.zero_()
            events.append(_between(run))
        return _summary(events)

    def step(self, run: Callable[[], object], rounds: int) -> dict[str, float]:
        """{"min", "median"} in ms of a step among others, as training runs them."""
        if not self.cuda:
            return self._wall(run, rounds)
        torch.cuda.synchronize()
        return _summary([_between(run) for _ in range(rounds)])

    @staticmethod
    def _wall(run: Callable[[], object], rounds: int) -> dict[str, float]:
        taken = []
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            taken.append(1e3 * (time.perf_counter() - start))
        return _of(taken)


def _between(run: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    return begin, end


def _summary(events: list[tuple[torch.cuda.Event, torch.cuda.Event]]) -> dict[str, float]:
    torch.cuda.synchronize()
    return _of([begin.elapsed_time(end) for begin, end in events])


def _of(taken: list[float]) -> dict[str, float]:
    return {"min": round(min(taken), 5), "median": round(median(taken), 5)}
