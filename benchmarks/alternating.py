"""Timing implementations against each other on a noisy machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def compare(benchmark, runs: Mapping[str, Callable[[], None]], rounds: int) -> None:
    """Times every run once per round, in turn, so that a slow moment meets all of them alike.

    extra_info gets the best and the median of each in ms, and the ratio of the best "dense" run to
    the "sparse" one.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}

    def one_round() -> None:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))

    one_round()  # warms up
    for seconds in times.values():
        seconds.clear()
    benchmark.pedantic(one_round, rounds=rounds)
    info = benchmark.extra_info
    for name, taken in times.items():
        info[f"{name} ms"] = round(min(taken), 3)
        info[f"{name} ms median"] = round(median(taken), 3)
    dense = [min(taken) for name, taken in times.items() if name.startswith("dense")]
    info["speed-up"] = round(min(dense) / min(times["sparse"]), 2)
    info["threads"] = torch.get_num_threads()
