"""What sums of a GPU's matrix units may be off by, and operands of which their products are exact.

They add some products at a time to a float32 sum, and cut off what does not fit where others round.
So a unit of the last place may be lost each time, always in the same direction. Eight products at a
time is what was seen of an A100 (Fasi, Higham, Mikaitis and Pranesh, Numerical behavior of NVIDIA
tensor cores, 2021), and four of TF32. This was not tried on any GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsr_kernels import SparseModule
from dsr_kernels.ops.results import LOW_PRECISION

TOGETHER = {torch.bfloat16: 8, torch.float16: 8, torch.float32: 4}
# A grad-weight is summed in parts, which round where they meet. Those of the tilings on a GPU with
# some hundred multiprocessors are no longer than this.
LONGEST_PART = 512
TF32_EPS = 2.0**-10  # what float32 operands are rounded to


def unit_of(dtype: torch.dtype) -> float:
    """Of the last place of operands, relative."""
    return TF32_EPS if dtype == torch.float32 else torch.finfo(dtype).eps


def to_tf32(tensor: Tensor) -> Tensor:
    """Finite float32 rounded to the 10 bits of mantissa that TF32 has, ties away from zero."""
    bits = tensor.detach().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).view_as(tensor)


def as_operand(tensor: Tensor) -> Tensor:
    """An activation or a gradient as matrix units take it, in the same strides."""
    if tensor.dtype != torch.float32:
        return tensor
    return torch.empty_like(tensor).copy_(to_tf32(tensor))


def round_weights(conv: SparseModule, dtype: torch.dtype) -> None:
    """To numbers of a 16-bit type: then it makes no difference whether kernels round them."""
    if dtype in LOW_PRECISION:
        conv.weight_values.data.copy_(conv.weight_values.detach().to(dtype))


def truncation(conv: SparseModule, y: Tensor) -> tuple[float, float, float]:
    """Of y, gx and gvalues by matrix units: how much of the largest one."""
    rows, channels = conv.weight_shape[:2]
    pixels = y.numel() // rows
    products = conv.row_length, conv.numel // channels, pixels
    cut = [-(-n // TOGETHER[y.dtype]) for n in products]
    cut[2] = min(cut[2], LONGEST_PART)
    y, gx, gvalues = (n * torch.finfo(torch.float32).eps for n in cut)
    return y, gx, gvalues
