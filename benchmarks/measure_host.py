"""Measures what Python takes of a layer's forward and backward: on CPUs, and ahead of a GPU.

    PYTHONPATH=.:tests python benchmarks/measure_host.py build/host.json

Layers are so small that their kernels take next to nothing. No GPU is needed: its backend runs on
tensors of the CPU, with kernels that are launched by an emulator which runs nothing. So the times
of a real GPU's driver, and of torch's allocator there, are not in them. `make bench-host` runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from helpers.cuda_conv_cases import EMULATED_GPU, gpu_kernels
from helpers.cuda_device import kernels
from host_table import table
from summarize import lines_of
from torch import Tensor, nn

from dsr_kernels import SparseConv2d, SparseLinear
from dsr_kernels.backends.processor import processor_facts
from dsr_kernels.environment import machine

CALLS = 300  # in one time
LAYERS = {
    "conv": (
        lambda bias: SparseConv2d(4, 4, 1, sparsity=0.5, bias=bias),
        lambda bias: nn.Conv2d(4, 4, 1, bias=bias),
        (1, 4, 2, 2),
    ),
    "linear": (
        lambda bias: SparseLinear(8, 8, bias, sparsity=0.5),
        lambda bias: nn.Linear(8, 8, bias),
        (2, 8),
    ),
}
WHAT = ("forward", "first layer", "other layers")  # the last two forward and backward


def call_of(module: nn.Module, size: tuple[int, ...], what: str) -> Callable[[], object]:
    """One forward without gradients, or forward and backward; a first layer's input needs none."""
    x = torch.randn(size)
    if what == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return module(x)

        return forward
    x.requires_grad_(what != "first layer")
    wanted, grad = [*module.parameters(), *([x] if x.requires_grad else [])], module(x).detach()
    return lambda: torch.autograd.grad(module(x), wanted, grad)


def microseconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict]:
    """Minimum and median of a call, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):  # the first is thrown away
        for name, call in calls.items():
            begin = time.perf_counter()
            for _ in range(CALLS):
                call()
            taken[name].append((time.perf_counter() - begin) / CALLS * 1e6)
    return {
        name: {"min": min(times[1:]), "median": statistics.median(times[1:])}
        for name, times in taken.items()
    }


@contextlib.contextmanager
def idle_gpu() -> Iterator[None]:
    """Inside, layers on the CPU call the GPU's kernels, which do nothing."""
    with gpu_kernels(device=EMULATED_GPU, prepared=True):
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)  # which fills what torch.empty gives
        kernels().emulator.be_idle(True)
        try:
            yield
        finally:
            kernels().emulator.be_idle(False)
            torch.use_deterministic_algorithms(deterministic)


def records(backend: str, rounds: int) -> list[dict]:
    found = []
    for layer, (sparse, dense, size) in LAYERS.items():
        for bias in (False, True):
            for what in WHAT:
                calls = {
                    "dense": call_of(dense(bias), size, what),
                    "ours": call_of(sparse(bias), size, what),
                }
                times = microseconds(calls, rounds)
                found.append({"backend": backend, "layer": layer, "bias": bias, "what": what})
                found[-1]["microseconds"] = times
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("json", type=Path, help="where to write what was measured")
    add("--rounds", type=int, default=15, help="times of each (default: 15)")
    options = parser.parse_args()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    kept = {
        "machine": {**machine(torch.device("cpu")), **processor_facts()},
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "rounds": options.rounds,
        "records": records("cpu", options.rounds),
    }
    with idle_gpu():
        kept["records"] += records("gpu, launching nothing", options.rounds)
    options.json.write_text(lines_of(kept))
    print(table([json.loads(options.json.read_text())]))


if __name__ == "__main__":
    main()
