"""Times of the kernels on tensor cores by their cost model, beside what an H200 measured.

PYTHONPATH=benchmarks python -m gpu.windows h200.json docs/cuda.md

writes the table between two marks of the page. No GPU has run these kernels: their columns are a
model (dsr_kernels/backends/cuda/window_costs.py), whose constants nobody has measured. Those of
dense and of the kernels without tensor cores are medians of the JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from layers import FAMILIES

from dsr_kernels.backends.cuda.window_gather import choose_window_gather
from dsr_kernels.backends.cuda.window_grad_weight import choose_window_grad_weight
from dsr_kernels.bench.problem import OPERATIONS, Layer
from dsr_kernels.text_table import markdown

from .model import DENSITY, GPUS, microseconds, passes
from .pages import renew

BEGIN, END = "<!-- windows: made by `make cuda-model` -->", "<!-- end of windows -->"
GPU = GPUS["H100"]  # an H200 has as many multiprocessors, at the same clock
BYTES = 2  # of an activation
PASSES = OPERATIONS[:3]
SPARSITY = 0.9


def by_windows(layer: Layer, block_size: int) -> list[float]:
    """Microseconds of forward, grad-input and grad-weight where the planner may take windows."""
    forward, grad_input = passes(layer)
    call = layer.batch, DENSITY, block_size, BYTES, GPU.device
    chosen = (
        choose_window_gather(forward, *call),
        choose_window_gather(grad_input, *call),
        choose_window_grad_weight(forward, *call),
    )
    without = microseconds(layer, GPU, BYTES)
    return [
        min(us, tiling.clocks / GPU.ghz / 1e3) if tiling else us
        for us, tiling in zip(without, chosen, strict=True)
    ]


def measured(kept: dict, layer: Layer) -> tuple[list[float], list[float]]:
    """Microseconds of ours, in bfloat16 without tensor cores, and of the faster dense one."""
    ours, dense = [], []
    for operation in PASSES:
        (ms,) = (
            record["ms"]
            for record in kept["layers"]
            if (record["layer"], record["batch"]) == (str(layer), layer.batch)
            and (record["operation"], record["dtype"]) == (operation, "bf16")
            and record["sparsity"] == SPARSITY
        )
        ours.append(1e3 * ms["ours"]["median"])
        dense.append(1e3 * min(ms[name]["median"] for name in ms if name.startswith("dense bf16")))
    return ours, dense


def table(kept: dict) -> str:
    header = [
        "90 % sparse, bf16, µs",
        "without tensor cores, measured",
        "modelled",
        "windows, single weights, modelled",
        "windows, blocks of 16, modelled",
        "dense, measured",
        "dense measured over blocks of 16 modelled",
    ]
    rows = []
    for layer in (layer for layers in FAMILIES.values() for layer in layers):
        ours, dense = measured(kept, layer)
        blocks = by_windows(layer, 16)
        times = ours, microseconds(layer, GPU, BYTES), by_windows(layer, 1), blocks, dense
        shown = [" / ".join(f"{us:.0f}" for us in each) for each in times]
        ratio = sum(dense) / sum(blocks)
        rows.append([f"{layer}, N={layer.batch}", *shown, f"{ratio:.2f}x"])
    return markdown(header, rows)


if __name__ == "__main__":
    result, page = map(Path, sys.argv[1:])
    renew(page, BEGIN, END, table(json.loads(result.read_text(encoding="utf-8"))))
