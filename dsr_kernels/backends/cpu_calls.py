"""Calls of the CPU's kernels with everything decided but where their tensors lie: see `calls`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from dsr_kernels.backends import calls, live_taps
from dsr_kernels.backends.address import require_memory, span_of
from dsr_kernels.backends.blocks import block_size_of
from dsr_kernels.backends.buffers import SMALLEST, buffers
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cpu_plans import activation, build_plan, geometry, scratch
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.pattern import Plan
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.backends.tensors import taking_tensors

Numbers = tuple[Tensor, Tensor, Tensor] | None  # center, scale and shift [C]
NOTHING = (None, None, None)


class Call(calls.Call):
    __slots__ = ("channels", "has_owner", "is_small")

    def __init__(self, out: Tensor, sums: bool, has_owner: bool) -> None:
        super().__init__(out)
        self.is_small = out.nbytes < SMALLEST
        self.channels = out.shape[1] if sums else 0  # of moments or sums
        self.has_owner = has_owner

    def empty(self, dtype: torch.dtype, kept: bool = False) -> Tensor:
        """A tensor for the result, in memory that is kept from step to step if that is `kept`."""
        if kept and not self.is_small:
            owner = self if self.has_owner else None
            return buffers.empty(owner, self.size, self.strides, dtype)
        return torch.empty_strided(self.size, self.strides, dtype=dtype, device=self.device)


class Forward(Call):
    """y = relu(conv2d(pad(z), W) * scale + bias + residual), and its moments: backends.fused."""

    __slots__ = ("run", "run_fused", "values_span", "workspace", "x_span")

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
        n, size = x.shape[0], block_size_of(crow_indices, shape.rows)
        g = geometry(x, out, x.shape[1:], out.shape[1:], shape, values.dtype, block_size=size)
        plan = patterns.plan(crow_indices, col_indices, g, build_plan)
        self.plans = (plan,)
        formats = activation(x, g, "input")[1:], activation(out, g)[1:]
        threads = torch.get_num_threads()
        self.workspace = plan.workspace_bytes("forward", n, threads, sums)
        self.x_span, self.values_span = span_of(x), span_of(values)
        native = _C.Forward(plan, n, *formats, threads)
        self.run, self.run_fused = taking_tensors(native.run), taking_tensors(native.run_fused)

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
        require_memory(x, self.x_span, "input")
        require_memory(values, self.values_span, "weight_values")
        if bias is not None:
            require_memory(bias, bias.nbytes, "bias")
        workspace = scratch(self.workspace)  # may die with this name
        if numbers is residual is moments is scale is None and not (relu or out_relu):
            self.run(out, x, values, bias, workspace)
            return out
        if residual is not None:
            require_memory(residual, span_of(residual), "residual")
        _require_numbers(numbers, (scale,))
        way_out = residual, *(moments or NOTHING[:2]), scale, out_relu
        self.run_fused(
            *(out, x, values, bias, *(numbers or NOTHING), relu, *way_out, workspace),
        )
        return out


class Backward(Call):
    """The gradients of x and of the values, which share what they read: see backends.fused."""

    __slots__ = ("run", "run_fused", "spans", "workspace")

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
        plan = patterns.plan(crow_indices, col_indices, g, build_plan)
        forward = patterns.plan(crow_indices, col_indices, forward_g, build_plan)
        self.plans = plan, forward
        formats = activation(grad, g, "gradient")[1:], activation(out, g)[1:]
        x_format, threads = activation(x, forward_g, "input")[1:], torch.get_num_threads()
        self.workspace = plan.workspace_bytes("grad_input", n, threads, sums)
        self.workspace += forward.workspace_bytes("grad_weight", n, threads)
        self.spans = span_of(grad), span_of(values), span_of(x)
        native = _C.Backward(plan, forward, n, *formats, x_format, threads)
        self.run, self.run_fused = taking_tensors(native.run), taking_tensors(native.run_fused)

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
        grad_span, values_span, x_span = self.spans
        require_memory(grad, grad_span, "gradient")
        require_memory(values, values_span, "weight_values")
        require_memory(x, x_span, "input")
        workspace = scratch(self.workspace)  # may die with this name
        if numbers is passed is y is y_numbers is None and not relu:
            self.run(out, out_values, grad, values, x, workspace)
            return
        for beside, name in ((passed, "gradient of the input"), (y, "output")):
            if beside is not None:
                require_memory(beside, span_of(beside), name)
        _require_numbers(numbers, y_numbers)
        way_out = *(numbers or NOTHING), relu, passed, *(sums or NOTHING[:2])
        of_y = y, *(y_numbers or NOTHING)
        self.run_fused(out, out_values, grad, values, x, *way_out, *of_y, workspace)


class GradWeight:
    """The gradient of the values alone, as a first layer has it."""

    __slots__ = ("__weakref__", "plans", "run", "spans", "workspace")

    plans: tuple[Plan, ...]

    def __init__(
        self,
        x: Tensor,  # [N, C, H, W]
        grad: Tensor,  # [N, O, P, Q]
        dtype: torch.dtype,  # of the values
        crow_indices: Tensor,
        col_indices: Tensor,
        shape: ConvShape,
    ) -> None:
        n, size = x.shape[0], block_size_of(crow_indices, shape.rows)
        g = geometry(x, grad, x.shape[1:], grad.shape[1:], shape, dtype, block_size=size)
        plan = patterns.plan(crow_indices, col_indices, g, build_plan)
        self.plans = (plan,)
        formats = activation(x, g, "input")[1:], activation(grad, g, "gradient")[1:]
        threads = torch.get_num_threads()
        self.workspace = plan.workspace_bytes("grad_weight", n, threads)
        self.spans = span_of(x), span_of(grad)
        self.run = taking_tensors(_C.GradWeight(plan, n, *formats, threads).run)

    def into(self, out: Tensor, x: Tensor, grad: Tensor) -> Tensor:
        x_span, grad_span = self.spans
        require_memory(x, x_span, "input")
        require_memory(grad, grad_span, "gradient")
        self.run(out, x, grad, scratch(self.workspace))
        return out


def _require_numbers(*of_channels: Sequence[Tensor | None] | None) -> None:
    for numbers in of_channels:
        for each in numbers or ():
            if each is not None:
                require_memory(each, each.nbytes, "a number of each channel")


def prepare_forward(
    seen: Hashable | None,
    tensors: Sequence[Tensor | None],  # whose looks it is kept for
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
    if seen is None or not (_fits(x, values.dtype) and calls.are_contiguous(values, *numbers)):
        return None
    if not (residual is None or same_strides(residual, out)) or not _is_whole(x, out, shape):
        return None
    call = Forward(out, x, *weight, shape, sums)
    patterns.keep_call(patterns.find(crow_indices, col_indices), seen, tensors, call)
    return call


def prepare_backward(
    seen: Hashable | None,
    tensors: Sequence[Tensor | None],
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
    if seen is None or not (_fits(grad, values.dtype) and _fits(x, values.dtype)):
        return None
    if not (same_strides(x, out) and calls.are_contiguous(values, *numbers)):
        return None
    if not (passed is None or same_strides(passed, out)):
        return None
    if not (y is None or same_strides(y, grad)) or not _is_whole(x, grad, shape):
        return None
    call = Backward(out, grad, x, *weight, shape, sums)
    patterns.keep_call(patterns.find(crow_indices, col_indices), seen, tensors, call)
    return call


def prepare_grad_weight(
    seen: Hashable | None,
    x: Tensor,
    grad: Tensor,
    dtype: torch.dtype,  # of the values
    pattern: tuple[Tensor, Tensor],
    shape: ConvShape,
) -> GradWeight | None:
    """As prepare_forward."""
    if seen is None or not (_fits(x, dtype) and _fits(grad, dtype)):
        return None
    if live_taps.parts_of(x.shape[2:], grad.shape[2:], shape, False) is not None:
        return None
    call = GradWeight(x, grad, dtype, *pattern, shape)
    patterns.keep_call(patterns.find(*pattern), seen, (x, grad), call)
    return call


def _fits(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels read such activations as they are, beside values of `dtype`."""
    return x.is_cpu and x.numel() > 0 and is_native(x, dtype)


def is_native(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether there are kernels for activations of this kind beside values of `dtype`."""
    return x.dtype == dtype or (x.dtype == torch.bfloat16 and dtype == torch.float32)


def same_strides(a: Tensor, b: Tensor) -> bool:
    return all(
        size == 1 or one == other
        for size, one, other in zip(a.shape, a.stride(), b.stride(), strict=True)
    )


def _is_whole(x: Tensor, y: Tensor, shape: ConvShape) -> bool:
    """Whether one plan computes each direction: see live_taps."""
    sizes = x.shape[2:], y.shape[2:]
    return all(live_taps.parts_of(*sizes, shape, back) is None for back in (False, True))
