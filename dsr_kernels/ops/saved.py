"""What a recorded op keeps until its backward pass: tensors, and which pattern they belong to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_gradtrackingtensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd.function import FunctionCtx

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.pattern import Pattern
from dsr_kernels.backends.patterns import patterns

STALE = (
    "sparse_conv2d: the values or the pattern of a sparse layer, or its input, changed between "
    "forward and backward (an optimizer step or a rewire?); this graph belongs to weights that no "
    "longer exist, run the forward again"
)


class Context(FunctionCtx):
    """What a recorded op remembers until its backward pass."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]
    pattern: tuple[Tensor, Tensor]  # crow_indices, col_indices
    found: Pattern | None  # what they held
    pattern_version: tuple[int, int] | None
    shape: ConvShape
    input_size: torch.Size  # (C, H, W)
    channels_last: bool  # of the input
    grad_size: torch.Size  # [N, O, P, Q]
    dtype: torch.dtype


Gradients = tuple[Tensor | None, ...]  # one for each argument of a Function


def keep_pattern(ctx: Context, crow_indices: Tensor, col_indices: Tensor, plain: bool) -> None:
    """Keeps the pattern past hooks on saved tensors: a copy, as torch.autograd.graph.save_on_cpu
    makes them, would not tell that the layer has been rewired.

    Of plain tensors it is known by what they hold, for not every write counts a version.
    """
    if plain:
        ctx.pattern, ctx.pattern_version = (crow_indices, col_indices), None
        ctx.found = patterns.find(crow_indices, col_indices)
    else:
        ctx.pattern = _of_no_gradient(crow_indices), _of_no_gradient(col_indices)
        ctx.found, ctx.pattern_version = None, _version(ctx.pattern)


def _of_no_gradient(index: Tensor) -> Tensor:
    """The tensor that torch.func.grad and vjp have wrapped, for vjp's function outlives them."""
    while is_gradtrackingtensor(index):
        index = get_unwrapped(index)
    return index


def _is_the_same(ctx: Context) -> bool:
    if ctx.found is None:
        return _version(ctx.pattern) == ctx.pattern_version
    return patterns.find(*ctx.pattern).same_as(ctx.found)


def _version(pattern: tuple[Tensor, Tensor]) -> tuple[int, int] | None:
    crow_indices, col_indices = pattern
    if crow_indices.is_inference() or col_indices.is_inference():
        return None  # they count no versions
    return crow_indices._version, col_indices._version


def saved(ctx: Context) -> tuple[Tensor, ...]:
    """The saved tensors; an activation that no wanted gradient needs is None."""
    if not _is_the_same(ctx):
        raise RuntimeError(STALE)
    try:
        # vjp's function outlives its transform, and the saved tensors are wrappers of that still. A
        # plain gradient goes straight to the kernels, so no dispatcher of torch unwraps them.
        tensors = ctx.saved_tensors
        return tensors if ctx.found is not None else unwrap_dead_wrappers(tensors)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(f"{STALE}. torch says: {error}") from error
