"""What sums of a GPU's matrix units may be off by, and weights of which their products are exact.

They add some products at a time to a float32 sum, and cut off what does not fit where others round.
So a unit of the last place may be lost each time, always in the same direction. Eight products at a
time is what was seen of an A100 (Fasi, Higham, Mikaitis and Pranesh, Numerical behavior of NVIDIA
tensor cores, 2021). This was not tried on any GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsr_kernels import SparseModule
from dsr_kernels.ops.results import LOW_PRECISION

TOGETHER = 8
# A grad-weight is summed in parts, which round where they meet. Those of the tilings on a GPU with
# some hundred multiprocessors are no longer than this.
LONGEST_PART = 512


def round_weights(conv: SparseModule, dtype: torch.dtype) -> None:
    """To numbers of a 16-bit type: then it makes no difference whether kernels round them."""
    if dtype in LOW_PRECISION:
        conv.weight_values.data.copy_(conv.weight_values.detach().to(dtype))


def truncation(conv: SparseModule, y: Tensor) -> tuple[float, float, float]:
    """Of y, gx and gvalues: how much of the largest one. Nothing where y has more than 16 bits."""
    if y.dtype not in LOW_PRECISION:
        return 0.0, 0.0, 0.0
    rows, channels = conv.weight_shape[:2]
    pixels = y.numel() // rows
    products = conv.row_length, conv.numel // channels, pixels
    cut = [-(-n // TOGETHER) for n in products]
    cut[2] = min(cut[2], LONGEST_PART)
    y, gx, gvalues = (n * torch.finfo(torch.float32).eps for n in cut)
    return y, gx, gvalues
