"""What a recorded op keeps until its backward pass: tensors, and which pattern they belong to.

A backward pass computes with the weight that the forward pass has read, or not at all, whatever
another thread makes of the layer in between and meanwhile.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_gradtrackingtensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd.function import FunctionCtx

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.held import exchange, hold_pattern, hold_values
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
    values_version: tuple[int, int] | None  # the tensor's id, and its version
    shape: ConvShape
    input_size: torch.Size  # (C, H, W)
    channels_last: bool  # of the input
    grad_size: torch.Size  # [N, O, P, Q]
    dtype: torch.dtype


Gradients = tuple[Tensor | None, ...]  # one for each argument of a Function


def keep_weight(
    ctx: Context, plain: bool, values: Tensor, crow_indices: Tensor, col_indices: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `keep_pattern`, and which values belong to it.

    Returns what the forward pass computes with: of plain tensors the weight as it is now.
    """
    if not plain:
        return values, *keep_pattern(ctx, plain, crow_indices, col_indices)
    with exchange:
        pattern = keep_pattern(ctx, plain, crow_indices, col_indices)
        ctx.values_version = version_of(values)
        return hold_values(values), *pattern


def version_of(values: Tensor) -> tuple[int, int] | None:
    """Which tensor it is, and how often it has changed; None where that is not counted."""
    return None if values.is_inference() else (id(values), values._version)


def recorded_with(y: Tensor, version: tuple[int, int] | None) -> Tensor:
    """The result of an op whose Function was given values of that version.

    torch had noted then where their gradient goes, and its size. Values that another thread has
    changed before the pass read them may have another one: then the graph is of no weight.
    """
    y.grad_fn.values_version = version  # type: ignore[union-attr]
    return y


def keep_pattern(
    ctx: Context, plain: bool, crow_indices: Tensor, col_indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Keeps the pattern past hooks on saved tensors: a copy, as torch.autograd.graph.save_on_cpu
    makes them, would not tell that the layer has been rewired.

    Of plain tensors it is known by what they hold, for not every write counts a version.
    """
    if plain:
        held = hold_pattern(crow_indices, col_indices)
        keep_found(ctx, held.found, crow_indices, col_indices)
        return held.indices
    ctx.pattern = _of_no_gradient(crow_indices), _of_no_gradient(col_indices)
    ctx.values_version, ctx.found, ctx.pattern_version = None, None, _version(ctx.pattern)
    return crow_indices, col_indices


def keep_found(
    ctx: Context, found: Pattern | None, crow_indices: Tensor, col_indices: Tensor
) -> None:
    """Keeps what the index tensors of a plain weight held."""
    ctx.pattern, ctx.found = (crow_indices, col_indices), found
    ctx.values_version = ctx.pattern_version = None


def _of_no_gradient(index: Tensor) -> Tensor:
    """The tensor that torch.func.grad and vjp have wrapped, for vjp's function outlives them."""
    while is_gradtrackingtensor(index):
        index = get_unwrapped(index)
    return index


def _version(pattern: tuple[Tensor, Tensor]) -> tuple[int, int] | None:
    crow_indices, col_indices = pattern
    if crow_indices.is_inference() or col_indices.is_inference():
        return None  # they count no versions
    return crow_indices._version, col_indices._version


def saved(
    ctx: Context, values_at: int | None = None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """(the saved tensors, the pattern); an activation that no wanted gradient needs is None.

    values_at: which of the tensors are the values. Where nothing is recorded, these and the pattern
    are held, as they are now. Raises RuntimeError where they are others than in the forward pass.
    """
    if ctx.found is None and _version(ctx.pattern) != ctx.pattern_version:
        raise RuntimeError(STALE)
    try:
        tensors = ctx.saved_tensors  # before `exchange`: it may run a whole forward pass
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(f"{STALE}. torch says: {error}") from error
    if ctx.found is None:
        # vjp's function outlives its transform, and the saved tensors are wrappers of that still. A
        # plain gradient goes straight to the kernels, so no dispatcher of torch unwraps them.
        return unwrap_dead_wrappers(tensors), ctx.pattern
    crow_indices, col_indices = ctx.pattern
    with exchange:
        now = patterns.find(crow_indices, col_indices)
        if not now.same_as(ctx.found):
            raise RuntimeError(STALE)
        recorded = torch.is_grad_enabled()
        pattern = ctx.pattern if recorded else (crow_indices.data, col_indices.data)
        if values_at is None:
            return tensors, pattern
        values = tensors[values_at]
        if ctx.values_version is not None:
            known, version = ctx.values_version
            if id(values) == known and values._version != version:
                raise RuntimeError(STALE)
        if recorded:
            return tensors, pattern
        held = hold_values(values)
    return (*tensors[:values_at], held, *tensors[values_at + 1 :]), pattern
