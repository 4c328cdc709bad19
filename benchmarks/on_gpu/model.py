"""Times of the GPU kernels by their tilings' cost model, on GPUs that need not be there.

PYTHONPATH=benchmarks:tests python -m on_gpu.model docs/cuda.md

writes the table between two marks of the page. The counts are those that choose a tiling
(csrc/cuda/conv/plan/tilings.h), at the clocks below. Dense is taken to reach its data
sheet's peak, or the memory's where that is what bounds it: no library does, so the ratios lean
towards dense.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from layers import FAMILIES
from pages import renew

from dsr_kernels.backends import native
from dsr_kernels.backends.cuda.plans import Device, Direction, pass_sizes
from dsr_kernels.bench.problem import Layer
from dsr_kernels.text_table import markdown

from .yardsticks import SHARED_BYTES_PER_CLOCK

BEGIN, END = "<!-- modelled: made by `make cuda-model` -->", "<!-- end of modelled -->"
DENSITY = 0.1
BYTES = 4  # of an activation, in the table
PRECISIONS = ("fp32", "TF32")


class Gpu(NamedTuple):
    device: Device
    ghz: float
    tflops: dict[str, float]  # dense, by precision
    memory: float  # TB/s


# NVIDIA's data sheets: A100 80GB SXM, H100 SXM.
GPUS = {
    "A100": Gpu(Device(108, 163 << 10), 1.41, {"fp32": 19.5, "TF32": 156.0}, 2.04),
    "H100": Gpu(Device(132, 227 << 10), 1.98, {"fp32": 67.0, "TF32": 495.0}, 3.35),
}


def planning() -> ModuleType:
    """The planner of this build's kernels; of those under the emulator where it has none."""
    if native._cuda is not None:
        return native._cuda.planning
    from helpers import cuda_emulated

    return cuda_emulated.load().planning


def pass_of(direction: Direction, layer: Layer) -> tuple:
    """Sizes of a pass for the planner; pointwise images as columns of pixels."""
    size, out_size = layer.size, layer.out_size
    if layer.kernel == (1, 1) and size == out_size:
        size = out_size = (size[0] * size[1], 1)
    sizes = (1, layer.in_channels, *size), (1, layer.out_channels, *out_size)
    return planning().pass_shape(direction, *pass_sizes(*sizes, layer.shape))


def least_clocks(tilings: list[tuple]) -> float | None:
    """Of the cheapest tiling; None of none."""
    return min((clocks for *_, clocks in tilings), default=None)


def microseconds(layer: Layer, gpu: Gpu, element_size: int = BYTES) -> list[float]:
    """Of forward, grad-input and grad-weight."""
    forward, grad_input = (pass_of(d, layer) for d in ("forward", "grad_input"))
    call = layer.batch, DENSITY, element_size, gpu.device
    tilings = (
        planning().gather_tilings(forward, *call),
        planning().gather_tilings(grad_input, *call),
        planning().grad_weight_tilings(forward, *call),
    )
    return [least_clocks(each) / gpu.ghz / 1e3 for each in tilings]


def multiply_adds(layer: Layer) -> float:
    """Of one dense pass."""
    outputs, depth, height, width = layer.weight_shape
    pixels = layer.batch * layer.out_size[0] * layer.out_size[1]
    return float(pixels * outputs * depth * height * width)


def shared_microseconds(layer: Layer, gpu: Gpu) -> float:
    """Of one sparse pass that did nothing but read an operand per multiply-add."""
    per_clock = gpu.device.multiprocessors * SHARED_BYTES_PER_CLOCK / BYTES
    return DENSITY * multiply_adds(layer) / per_clock / gpu.ghz / 1e3


def dense_microseconds(layer: Layer, gpu: Gpu, precision: str) -> float:
    """Of one dense pass at its peak."""
    read = layer.batch * layer.in_channels * layer.size[0] * layer.size[1]
    written = layer.batch * layer.out_channels * layer.out_size[0] * layer.out_size[1]
    weight = multiply_adds(layer) / (written // layer.out_channels)
    computed = 2 * multiply_adds(layer) / gpu.tflops[precision]
    return max(computed, (read + written + weight) * BYTES / gpu.memory) / 1e6


def table() -> str:
    header = ["90 % sparse, fp32, modelled"]
    for name in GPUS:
        header += [f"{name} µs", "operands alone", *(f"over dense {p}" for p in PRECISIONS)]
    rows = []
    for layer in (layer for layers in FAMILIES.values() for layer in layers):
        row = [f"{layer}, N={layer.batch}"]
        for gpu in GPUS.values():
            times = microseconds(layer, gpu)
            row.append(" / ".join(f"{us:.0f}" for us in times))
            row.append(f"{shared_microseconds(layer, gpu):.0f}")
            for precision in PRECISIONS:
                row.append(f"{3 * dense_microseconds(layer, gpu, precision) / sum(times):.2f}x")
        rows.append(row)
    return markdown(header, rows)


if __name__ == "__main__":
    renew(Path(sys.argv[1]), BEGIN, END, table())
