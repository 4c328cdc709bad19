"""Times of the kernels on tensor cores by their cost model, beside what an H200 measured.

PYTHONPATH=benchmarks:tests python -m on_gpu.windows h200.json docs/cuda.md

writes the tables between two marks of the page. No GPU has run these kernels: their columns are a
model (csrc/cuda/conv/plan/window_costs.h), whose constants nobody has measured. Those of
dense and of the kernels without tensor cores are medians of the JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

from layers import FAMILIES
from pages import renew

from dsr_kernels.bench.problem import OPERATIONS, Layer
from dsr_kernels.text_table import markdown

from .model import DENSITY, GPUS, least_clocks, microseconds, pass_of, planning

BEGIN, END = "<!-- windows: made by `make cuda-model` -->", "<!-- end of windows -->"
GPU = GPUS["H100"]  # an H200 has as many multiprocessors, at the same clock
PASSES = OPERATIONS[:3]
SPARSITY = 0.9


class Kind(NamedTuple):
    """Of activations, and what dense layers make of them."""

    words: str
    bytes: int  # of an activation
    dtype: str  # of ours in the JSON
    dense: str


KINDS = (
    Kind("bf16", 2, "bf16", "dense bf16"),
    Kind("fp32, windows and dense in TF32", 4, "fp32", "dense tf32"),
)


def by_windows(layer: Layer, block_size: int, element_size: int) -> list[float]:
    """Microseconds of forward, grad-input and grad-weight where the planner may take windows."""
    forward, grad_input = (pass_of(d, layer) for d in ("forward", "grad_input"))
    call = layer.batch, DENSITY, block_size, element_size, GPU.device
    tilings = (
        planning().window_gather_tilings(forward, *call),
        planning().window_gather_tilings(grad_input, *call),
        planning().window_grad_weight_tilings(forward, *call),
    )
    least = [least_clocks(each) for each in tilings]
    without = microseconds(layer, GPU, element_size)
    return [
        us if clocks is None else min(us, clocks / GPU.ghz / 1e3)
        for us, clocks in zip(without, least, strict=True)
    ]


def measured(kept: dict, layer: Layer, kind: Kind) -> tuple[list[float], list[float]]:
    """Microseconds of ours without tensor cores, and of the faster dense one."""
    ours, dense = [], []
    for operation in PASSES:
        (ms,) = (
            record["ms"]
            for record in kept["layers"]
            if (record["layer"], record["batch"]) == (str(layer), layer.batch)
            and (record["operation"], record["dtype"]) == (operation, kind.dtype)
            and record["sparsity"] == SPARSITY
        )
        ours.append(1e3 * ms["ours"]["median"])
        dense.append(1e3 * min(ms[name]["median"] for name in ms if name.startswith(kind.dense)))
    return ours, dense


def table(kept: dict, kind: Kind) -> str:
    header = [
        f"90 % sparse, {kind.words}, µs",
        "without tensor cores, measured",
        "modelled",
        "windows, single weights, modelled",
        "windows, blocks of 16, modelled",
        "dense, measured",
        "dense measured over blocks of 16 modelled",
    ]
    rows = []
    for layer in (layer for layers in FAMILIES.values() for layer in layers):
        ours, dense = measured(kept, layer, kind)
        single, blocks = (by_windows(layer, size, kind.bytes) for size in (1, 16))
        times = ours, microseconds(layer, GPU, kind.bytes), single, blocks, dense
        shown = [" / ".join(f"{us:.0f}" for us in each) for each in times]
        ratio = sum(dense) / sum(blocks)
        rows.append([f"{layer}, N={layer.batch}", *shown, f"{ratio:.2f}x"])
    return markdown(header, rows)


if __name__ == "__main__":
    result, page = map(Path, sys.argv[1:])
    kept = json.loads(result.read_text(encoding="utf-8"))
    renew(page, BEGIN, END, "\n\n".join(table(kept, kind) for kind in KINDS))
