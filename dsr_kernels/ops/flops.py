"""What torch.utils.flop_counter.FlopCounterMode counts of our operations.

The formulas are those of torch for the dense twin, times the density: 2 for each multiply-add, one
multiply-add for each non-zero and pixel of the output, those on padding included. A bias counts 0.

Importing torch.utils.flop_counter takes longer than importing all of this package, for it imports
Triton. So a counter that is at work learns of our operations when one of them first meets it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Size = Sequence[int]


def tell_counters() -> None:
    """Adds our formulas to every counter among the active modes; its own ones take precedence."""
    counting = sys.modules.get("torch.utils.flop_counter")
    if counting is None:
        return  # then there is none
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, counting.FlopCounterMode):
            for name, count in FORMULAS.items():
                operation = getattr(torch.ops.dsr_kernels, name)
                counter.flop_registry.setdefault(operation, counting.shape_wrapper(count))


def _conv2d(x: Size, values: Size, *others: Any, out_shape: Size) -> int:
    return _count(values, out_shape)


def _grad_input(grad: Size, values: Size, *others: Any, out_shape: Size) -> int:
    return _count(values, grad)


def _grad_weight(x: Size, grad: Size, *others: Any, out_shape: Size) -> int:
    return _count(out_shape, grad)


def _grad_bias(grad: Size, *others: Any, out_shape: Size) -> int:
    return 0


def _count(values: Size, output: Size) -> int:
    """values of nnz elements, output [N, O, P, Q]."""
    n, _, *plane = output
    return 2 * math.prod(values) * n * math.prod(plane)


FORMULAS: dict[str, Callable[..., int]] = {
    "sparse_conv2d": _conv2d,
    "sparse_conv2d_grad_input": _grad_input,
    "sparse_conv2d_grad_weight": _grad_weight,
    "sparse_conv2d_grad_bias": _grad_bias,
}
