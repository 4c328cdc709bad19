"""What a call costs beside its arithmetic: a tiny layer, forward and backward, beside torch's."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

import dsr_kernels

CALLS = 200  # of a round
CHANNELS, SIZE = 8, 8


def overhead_record(rounds: int) -> dict[str, Any]:
    """Microseconds of a forward and a backward of one image, ours and nn.Conv2d's in turn."""
    arguments = (CHANNELS, CHANNELS, 3)
    layers = {
        "dense": nn.Conv2d(*arguments, padding=1),
        "ours": dsr_kernels.SparseConv2d(*arguments, padding=1, sparsity=0.9),
    }
    runs = {name: _run(layer) for name, layer in layers.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):  # the first one warms up
        for name, run in runs.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                run()
            taken[name].append((time.perf_counter() - began) / CALLS * 1e6)
    us = {n: {"min": min(t[1:]), "median": median(t[1:])} for n, t in taken.items()}
    ratio = us["ours"]["min"] / us["dense"]["min"]
    return {"what": "tiny layer", "us": us, "over dense": round(ratio, 4), "rounds": rounds}


def _run(layer: nn.Module) -> Callable[[], None]:
    x = torch.randn(1, CHANNELS, SIZE, SIZE, requires_grad=True)
    grad = torch.ones(1, CHANNELS, SIZE, SIZE)
    return lambda: layer(x).backward(grad)
