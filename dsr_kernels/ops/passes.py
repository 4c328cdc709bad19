"""How the CPU runs one call of a convolution: its plans, why they are so, and how fast they are."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dsr_kernels.backends import cpu
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.ops import library

CYCLES_AT_PEAK = 0.5  # of a vector FMA: processors with AVX2 or AVX-512 issue two a cycle


class Pass(NamedTuple):
    """What one op of one call runs as."""

    plan: _C.ConvPlan
    how: _C.PlanDescription
    lanes: str
    reason: str
    filled: float  # share of the lanes that compute something that is stored

    @property
    def variant(self) -> str:
        """As in "row 4x4, 2 blocks": lanes, tile in rows x columns of vectors, channel blocks."""
        h = self.how
        blocks = f"{h['blocks']} block{'s' if h['blocks'] > 1 else ''}"
        return f"{self.lanes} {h['tile_rows']}x{h['tile_cols']}, {blocks}"

    def expected_gflops(self, peak: float) -> float:
        """Useful GF/s by the cost model, of a machine whose multiply-adds peak at `peak`."""
        return peak * CYCLES_AT_PEAK / self.how["cycles_per_fma"] * self.filled


def passes(
    x: Tensor,
    y: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> dict[str, Pass]:
    """{"forward": Pass, "grad_input": Pass} of a call; grad-weight shares forward's.

    x [N, C, H, W] and y [N, O, P, Q] give sizes and strides only and may be fake or meta tensors;
    the gradients are taken to have the same formats. Builds the plans, or finds them where the
    layer has run.
    """
    last = torch.channels_last if library.channels_last(x) else torch.contiguous_format
    grad_x = torch.empty(x.shape, device="meta", memory_format=last)
    sizes = tuple(x.shape[1:]), tuple(y.shape[1:])
    result = {}
    for name, read, written in (("forward", x, y), ("grad_input", y, grad_x)):
        transposed = name == "grad_input"
        geometry = cpu.geometry(read, written, *sizes, shape, values.dtype, transposed)
        plan = patterns.plan(crow_indices, col_indices, geometry, cpu.build_plan)
        how, reason = plan.describe(), cpu.lanes_reason(read, written, geometry)
        result[name] = Pass(plan, how, geometry.lanes, reason, _filled(how, read.shape[0]))
    return result


def _filled(how: _C.PlanDescription, n: int) -> float:
    groups = math.ceil(n / (how["images"] * how["lane_images"]))
    filled = n / (groups * how["images"] * how["lane_images"])
    if how["lanes"] == "row":
        return filled * how["class_cols"] * how["images"] / how["pitch"]
    if how["lanes"] == "plane":
        filled = how["class_cols"] / how["pitch"]  # images are stacked as far as there are any
        return filled * (how["class_rows"] / how["image_rows"] if how["images"] > 1 else 1)
    return filled
