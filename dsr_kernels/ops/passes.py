"""How the CPU runs one call of a convolution: its plans, why they are so, and how fast they are."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dsr_kernels.backends import cpu_plans, live_taps
from dsr_kernels.backends.blocks import block_size_of
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.ops import results

CYCLES_AT_PEAK = 0.5  # of a vector FMA: processors with AVX2 or AVX-512 issue two a cycle


class Pass(NamedTuple):
    """What one op of one call runs as: one plan, or one for each part (see live_taps)."""

    plans: tuple[_C.ConvPlan, ...]  # the one with the most non-zeros first, of which is:
    lanes: str  # "none" where no tap meets the image
    tile: tuple[int, int]  # rows x columns of vectors
    blocks: int  # of channels
    together: int  # output channels that share what is loaded
    reason: str
    speed: float  # useful multiply-adds by the cost model, as a share of the machine's peak
    bytes: int  # of the plans and the parts' patterns

    @property
    def variant(self) -> str:
        """As in "row 4x4, 2 blocks": lanes, tile in rows x columns of vectors, channel blocks. Of
        weights in blocks "row 3x2 by 4 channels, 1 block".
        """
        if not self.plans:
            return self.lanes
        by = f" by {self.together} channels" if self.together > 1 else ""
        blocks = f"{self.blocks} block{'s' if self.blocks > 1 else ''}"
        return f"{self.lanes} {self.tile[0]}x{self.tile[1]}{by}, {blocks}"

    def workspace_bytes(self, op: str, n: int, threads: int) -> int:
        return max((plan.workspace_bytes(op, n, threads) for plan in self.plans), default=0)


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
    last = torch.channels_last if results.channels_last(x) else torch.contiguous_format
    grad_x = torch.empty(x.shape, dtype=x.dtype, device="meta", memory_format=last)
    pattern, dtype = (crow_indices, col_indices), values.dtype
    return {
        "forward": _pass(x, y, pattern, shape, dtype, False),
        "grad_input": _pass(grad_x, y, pattern, shape, dtype, True),
    }


def _pass(
    x: Tensor,
    y: Tensor,
    pattern: tuple[Tensor, Tensor],
    shape: ConvShape,
    dtype: torch.dtype,
    transposed: bool,
) -> Pass:
    parts = live_taps.parts_of(x.shape[2:], y.shape[2:], shape, transposed)
    if parts is None:
        return _whole_pass(x, y, pattern, shape, dtype, transposed)
    found, taps, reached = [], 0, 0
    for part in parts.parts:
        selection = patterns.plan(*pattern, part.taps, live_taps.select)
        windows = part.of_input(x), part.of_output(y)
        run = _whole_pass(*windows, selection.pattern, part.shape, dtype, transposed)
        found.append((selection.kept.numel(), run._replace(bytes=run.bytes + selection.bytes)))
        taps += len(part.taps.rows) * len(part.taps.cols)
        reached += math.prod(windows[0 if transposed else 1].shape[2:])
    if not found:
        return Pass((), "none", (0, 0), 0, 1, "no tap meets the image", 0.0, 0)
    runs = [run for _, run in sorted(found, key=lambda one: -one[0])]
    pixels = math.prod((x if transposed else y).shape[2:])
    verb = "reaches" if taps == 1 else "reach"
    why = f"{taps} of {math.prod(shape.kernel)} taps {verb} {reached} of {pixels} pixels"
    why += f" in {len(runs)} parts" if len(runs) > 1 else ""
    return runs[0]._replace(
        plans=tuple(plan for run in runs for plan in run.plans),
        reason=f"{why}; {runs[0].reason}",
        bytes=sum(run.bytes for run in runs),
    )


def _whole_pass(
    x: Tensor,
    y: Tensor,
    pattern: tuple[Tensor, Tensor],
    shape: ConvShape,
    dtype: torch.dtype,
    transposed: bool,
) -> Pass:
    read, written = (y, x) if transposed else (x, y)
    sizes = tuple(x.shape[1:]), tuple(y.shape[1:])
    size = block_size_of(pattern[0], shape.rows)
    geometry = cpu_plans.geometry(read, written, *sizes, shape, dtype, transposed, size)
    plan = patterns.plan(*pattern, geometry, cpu_plans.build_plan)
    how = plan.describe()
    return Pass(
        (plan,),
        geometry.lanes,
        (how["tile_rows"], how["tile_cols"]),
        how["blocks"],
        how["block_rows"],
        cpu_plans.lanes_reason(read, written, geometry),
        CYCLES_AT_PEAK / how["cycles_per_fma"] * _filled(how, read.shape[0]),
        plan.bytes,
    )


def _filled(how: _C.PlanDescription, n: int) -> float:
    groups = math.ceil(n / (how["images"] * how["lane_images"]))
    filled = n / (groups * how["images"] * how["lane_images"])
    if how["lanes"] == "row":
        return filled * how["class_cols"] * how["images"] / how["pitch"]
    if how["lanes"] in ("plane", "matrix"):
        filled = how["class_cols"] / how["pitch"]  # images are stacked as far as there are any
        return filled * (how["class_rows"] / how["image_rows"] if how["images"] > 1 else 1)
    return filled
