"""Calls of the CPU's kernels with everything decided but the addresses, and what they look like.

What an op refuses, and how it runs, depends on the pattern and on what its tensors look like, never
on what else they hold. So the first call of a look is checked and planned, and kept beside the
plans of its pattern (`patterns.keep_call`); the next ones go from a look-up to the kernel. Else
Python would be most of the time of a small layer.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from dsr_kernels.backends import live_taps
from dsr_kernels.backends.address import known_address as address
from dsr_kernels.backends.blocks import block_size_of
from dsr_kernels.backends.buffers import SMALLEST, buffers
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cpu_plans import activation, build_plan, geometry, scratch
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.patterns import patterns

Numbers = tuple[Tensor, Tensor, Tensor] | None  # center, scale and shift [C]
_Finish = tuple[tuple[int, int, int], bool, int, int, tuple[int, int]]
NO_NUMBERS = (0, 0, 0)
NO_SUMS = (0, 0)
NO_FINISH: _Finish = (NO_NUMBERS, False, 0, 0, NO_SUMS)


def look(kind: str, shape: ConvShape, tensors: Sequence[Tensor | None]) -> Hashable | None:
    """What a call's verdict depends on; None where a tensor has no strides."""
    try:
        looks = [t if t is None else (t.dtype, t.is_cpu, t.shape, t.stride()) for t in tensors]
    except RuntimeError:  # sparse, or nested
        return None
    return (kind, shape, torch.get_num_threads(), *looks)


class Call:
    """What both kinds of calls have: the result, and how many threads work in which memory."""

    __slots__ = (
        *("__weakref__", "channels", "has_owner", "is_small", "plan", "size", "strides"),
        *("threads", "workspace"),
    )

    plan: _C.ConvPlan
    workspace: int  # bytes

    def __init__(self, out: Tensor, sums: bool, has_owner: bool) -> None:
        self.size, self.strides = out.shape, out.stride()
        self.is_small = out.nbytes < SMALLEST
        self.channels = out.shape[1] if sums else 0  # of moments or sums
        self.threads = torch.get_num_threads()
        self.has_owner = has_owner

    def empty(self, dtype: torch.dtype, kept: bool = False) -> Tensor:
        """A tensor for the result, in memory that is kept from step to step if that is `kept`."""
        if kept and not self.is_small:
            owner = self if self.has_owner else None
            return buffers.empty(owner, self.size, self.strides, dtype)
        return torch.empty_strided(self.size, self.strides, dtype=dtype, device="cpu")


class Forward(Call):
    """y = relu(conv2d(pad(z), W) * scale + bias + residual), and its moments: see backends.fused.

    Raises no error: its tensors look like those it was made with.
    """

    __slots__ = ("x", "y")

    def __init__(
        self,
        out: Tensor,  # [N, O, P, Q]
        x: Tensor,  # [N, C, H, W]
        values: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        shape: ConvShape,
        sums: bool = False,  # whether moments are asked for
    ) -> None:
        owner = patterns.owner_of(crow_indices, col_indices)
        super().__init__(out, sums, owner is not None)
        size = block_size_of(crow_indices, shape.rows)
        g = geometry(x, out, x.shape[1:], out.shape[1:], shape, values.dtype, block_size=size)
        self.plan = patterns.plan(crow_indices, col_indices, g, build_plan)
        self.x, self.y = activation(x, g, "input")[1:], activation(out, g)[1:]
        self.workspace = self.plan.workspace_bytes("forward", x.shape[0], self.threads, sums)

    def into(
        self,
        out: Tensor,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        numbers: Numbers = None,
        relu: bool = False,
        residual: Tensor | None = None,
        moments: tuple[Tensor, Tensor] | None = None,
        scale: Tensor | None = None,  # of the output
        out_relu: bool = False,
    ) -> Tensor:
        bias_at = 0 if bias is None else address(bias, "bias")
        finish = NO_FINISH
        if not (scale is residual is moments is None and not out_relu):
            finish = (
                NO_NUMBERS if scale is None else (0, address(scale), bias_at),
                out_relu,
                0 if residual is None else address(residual, "residual"),
                0,
                NO_SUMS if moments is None else (address(moments[0]), address(moments[1])),
            )
        workspace = scratch(self.workspace)  # may die with this name
        _C.sparse_conv2d_fused(
            self.plan,
            self.size[0],
            ((address(x, "input"), *self.x), _addresses(numbers), relu, 0),
            address(values, "weight_values"),
            bias_at if scale is None else 0,
            (address(out), *self.y),
            finish,
            self.threads,
            address(workspace),
        )
        return out


class Backward(Call):
    """The gradients of x and of the values, which share what they read: see backends.fused."""

    __slots__ = ("forward", "grad", "out", "x")

    def __init__(
        self,
        out: Tensor,  # [N, C, H, W]
        grad: Tensor,  # [N, O, P, Q]
        x: Tensor,
        values: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        shape: ConvShape,
        sums: bool = False,  # whether the gradients of center, scale and shift are asked for
    ) -> None:
        owner = patterns.owner_of(crow_indices, col_indices)
        super().__init__(out, sums, owner is not None)
        dtype, n, sizes = values.dtype, grad.shape[0], (out.shape[1:], grad.shape[1:])
        size = block_size_of(crow_indices, shape.rows)
        g = geometry(grad, out, *sizes, shape, dtype, True, size)
        forward_g = geometry(x, grad, *sizes, shape, dtype, False, size)
        self.plan = patterns.plan(crow_indices, col_indices, g, build_plan)
        self.forward = patterns.plan(crow_indices, col_indices, forward_g, build_plan)
        self.grad, self.out = activation(grad, g, "gradient")[1:], activation(out, g)[1:]
        self.x = activation(x, forward_g, "input")[1:]
        self.workspace = self.plan.workspace_bytes("grad_input", n, self.threads, sums)
        self.workspace += self.forward.workspace_bytes("grad_weight", n, self.threads)

    def into(
        self,
        out: Tensor,
        out_values: Tensor,  # [nnz]
        grad: Tensor,
        values: Tensor,
        x: Tensor,
        numbers: Numbers = None,
        relu: bool = False,
        passed: Tensor | None = None,
        sums: tuple[Tensor, Tensor] | None = None,  # of scale and shift
        y: Tensor | None = None,
        y_numbers: Numbers = None,
    ) -> None:
        by, x_at, finish = _addresses(numbers), address(x, "input"), NO_FINISH
        if relu or not numbers is passed is None:
            finish = (
                by,
                relu,
                0 if passed is None else address(passed),
                x_at,
                NO_SUMS if sums is None else (address(sums[1]), address(sums[0])),
            )
        y_at = 0 if y is None else address(y)
        workspace = scratch(self.workspace)  # may die with this name
        _C.sparse_conv2d_fused_backward(
            self.plan,
            self.forward,
            self.size[0],
            ((address(grad, "gradient"), *self.grad), _addresses(y_numbers), False, y_at),
            address(values, "weight_values"),
            (address(out), *self.out),
            finish,
            ((x_at, *self.x), by, relu, 0),
            address(out_values),
            self.threads,
            address(workspace),
        )


def _addresses(numbers: Numbers) -> tuple[int, int, int]:
    if numbers is None:
        return NO_NUMBERS
    center, scale, shift = numbers
    return address(center), address(scale), address(shift)


def prepare_forward(
    seen: Hashable | None,
    out: Tensor,
    x: Tensor,
    weight: tuple[Tensor, Tensor, Tensor],  # values, crow_indices, col_indices
    shape: ConvShape,
    numbers: Sequence[Tensor | None],  # of channels: bias, scales and so on
    residual: Tensor | None = None,
    sums: bool = False,
) -> Forward | None:
    """The call of arguments that have been checked, kept for others of their look.

    None where something has to be copied or cut for the kernels.
    """
    values, crow_indices, col_indices = weight
    if seen is None or not (_fits(x, values) and _are_contiguous(values, *numbers)):
        return None
    if not (residual is None or same_strides(residual, out)) or not _is_whole(x, out, shape):
        return None
    call = Forward(out, x, *weight, shape, sums)
    patterns.keep_call(crow_indices, col_indices, seen, call, call.plan)
    return call


def prepare_backward(
    seen: Hashable | None,
    out: Tensor,
    grad: Tensor,
    x: Tensor,
    weight: tuple[Tensor, Tensor, Tensor],
    shape: ConvShape,
    numbers: Sequence[Tensor | None] = (),
    passed: Tensor | None = None,
    y: Tensor | None = None,
    sums: bool = False,
) -> Backward | None:
    """As prepare_forward."""
    values, crow_indices, col_indices = weight
    if seen is None or not (_fits(grad, values) and _fits(x, values)):
        return None
    if not (same_strides(x, out) and _are_contiguous(values, *numbers)):
        return None
    if not (passed is None or same_strides(passed, out)):
        return None
    if not (y is None or same_strides(y, grad)) or not _is_whole(x, grad, shape):
        return None
    call = Backward(out, grad, x, *weight, shape, sums)
    patterns.keep_call(crow_indices, col_indices, seen, call, call.plan, call.forward)
    return call


def _fits(x: Tensor, values: Tensor) -> bool:
    """Whether the kernels read such activations as they are."""
    return x.is_cpu and x.numel() > 0 and is_native(x, values.dtype)


def is_native(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether there are kernels for activations of this kind beside values of `dtype`."""
    return x.dtype == dtype or (x.dtype == torch.bfloat16 and dtype == torch.float32)


def _are_contiguous(*tensors: Tensor | None) -> bool:
    return all(t is None or t.is_contiguous() for t in tensors)


def same_strides(a: Tensor, b: Tensor) -> bool:
    return all(
        size == 1 or one == other
        for size, one, other in zip(a.shape, a.stride(), b.stride(), strict=True)
    )


def _is_whole(x: Tensor, y: Tensor, shape: ConvShape) -> bool:
    """Whether one plan computes each direction: see live_taps."""
    sizes = x.shape[2:], y.shape[2:]
    return all(live_taps.parts_of(*sizes, shape, back) is None for back in (False, True))
