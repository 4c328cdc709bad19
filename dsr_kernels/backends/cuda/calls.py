"""Prepared calls of the GPU's slab kernels: see `backends.calls`.

Each pass is one native call, which launches all of it on torch's current stream. What runs by
matrix units, by the direct kernels, or with tensors of several types is never prepared.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from dsr_kernels.backends import calls, native
from dsr_kernels.backends.address import address, require_memory, span_of
from dsr_kernels.backends.blocks import block_size_of
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cuda import call, lists
from dsr_kernels.backends.cuda.passes import forward_shape, grad_input_shape
from dsr_kernels.backends.cuda.prepare import GatherPass, GradWeightPass
from dsr_kernels.backends.pattern import Plan
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.backends.tensors import share_with, taking_tensors

Pattern = tuple[Tensor, Tensor]  # crow_indices, col_indices


class Gather:
    """A forward pass or a grad-input, whose source and destination are of one type."""

    __slots__ = ("device", "entries", "plan", "run")

    def __init__(self, prepared: GatherPass, pattern: Pattern) -> None:
        plan = patterns.plan(*pattern, prepared.key, lists.build_list)
        self.plan, self.entries, self.device = plan, 2 * plan.entries, pattern[0].device
        share_with(native._cuda)
        made = native._cuda.GatherCall(list(prepared.launches), prepared.dtype, _list_of(plan))
        self.run = taking_tensors(made.run)

    def into(self, dest: Tensor, source: Tensor, values: Tensor, bias: Tensor | None) -> None:
        self.plan.wait()
        arranged = torch.empty(self.entries, dtype=torch.int32, device=self.device)
        self.run(*call.queue_of(source), source, values, bias, dest, arranged)


class GradWeight:
    """The gradient of the values alone: also a part of Backward."""

    __slots__ = ("__weakref__", "device", "plan", "plans", "read", "run", "spans", "splits")

    plans: tuple[Plan, ...]

    def __init__(
        self, prepared: GradWeightPass, x: Tensor, grad: Tensor, pattern: Pattern, shape: ConvShape
    ) -> None:
        plan = patterns.plan(*pattern, prepared.key, lists.build_list)
        self.plan, self.plans, self.splits = plan, (plan,), (prepared.splits, plan.entries)
        self.device, self.read = pattern[0].device, _Read(shape, grad.shape[2:])
        self.spans = span_of(x), span_of(grad)
        share_with(native._cuda)
        made = native._cuda.GradWeightCall(prepared.launch, prepared.dtype, _list_of(plan))
        self.run = taking_tensors(made.run)

    def into(self, out: Tensor, x: Tensor, grad: Tensor) -> Tensor:
        x_span, grad_span = self.spans
        require_memory(x, x_span, "input")
        require_memory(grad, grad_span, "gradient")
        self.plan.wait()
        partial = torch.empty(self.splits, dtype=torch.float32, device=self.device)
        self.run(*call.queue_of(x), self.read(x), grad, out, partial)
        return out


class Forward(calls.Call):
    __slots__ = ("gather", "read", "values_span", "x_span")

    def __init__(
        self,
        out: Tensor,  # [N, O, P, Q]
        x: Tensor,  # [N, C, H, W]
        values: Tensor,
        gather: Gather,
        shape: ConvShape,
    ) -> None:
        super().__init__(out)
        self.gather, self.plans = gather, (gather.plan,)
        self.x_span, self.values_span = span_of(x), span_of(values)
        self.read = _Read(shape, out.shape[2:])

    def into(self, out: Tensor, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        require_memory(x, self.x_span, "input")
        require_memory(values, self.values_span, "weight_values")
        if bias is not None:
            require_memory(bias, bias.nbytes, "bias")
        self.gather.into(out, self.read(x), values, bias)
        return out


class Backward(calls.Call):
    """The gradients of x and of the values."""

    __slots__ = ("gather", "grad_weight", "values_span")

    def __init__(self, out: Tensor, values: Tensor, gather: Gather, weight: GradWeight) -> None:
        super().__init__(out)
        self.gather, self.grad_weight, self.values_span = gather, weight, span_of(values)
        self.plans = gather.plan, weight.plan

    def into(
        self, out: Tensor, out_values: Tensor, grad: Tensor, values: Tensor, x: Tensor
    ) -> None:
        require_memory(values, self.values_span, "weight_values")
        self.grad_weight.into(out_values, x, grad)  # which looks at x and grad
        self.gather.into(out, grad, values, None)


class _Read:
    """What a pass reads of x: see call.subsampled."""

    __slots__ = ("size", "step")

    def __init__(self, shape: ConvShape, out_size: Sequence[int]) -> None:
        points = shape.kernel == (1, 1) and shape.stride != (1, 1) and not any(shape.padding)
        self.step, self.size = shape.stride if points else None, tuple(out_size)

    def __call__(self, x: Tensor) -> Tensor:
        if self.step is None:
            return x
        x = x[:, :, :: self.step[0], :: self.step[1]]
        return x[:, :, : self.size[0], : self.size[1]]


def prepare_forward(
    seen: Hashable | None,
    tensors: Sequence[Tensor | None],  # whose looks it is kept for
    out: Tensor,
    x: Tensor,
    weight: tuple[Tensor, Tensor, Tensor],  # values, crow_indices, col_indices
    shape: ConvShape,
    numbers: Sequence[Tensor | None],  # the bias
) -> Forward | None:
    values, *pattern = weight
    if seen is None or not (_fit(values, x.dtype, x, out) and _are_contiguous(values, *numbers)):
        return None
    source, of_source = call.subsampled(x, out.shape[2:], shape)
    sizes = tuple(source.shape), tuple(out.shape)
    gather = _gather(forward_shape, sizes, source, out, values, (*pattern,), of_source)
    if gather is None:
        return None
    made = Forward(out, x, values, gather, shape)
    patterns.keep_call(patterns.find(*pattern), seen, tensors, made)
    return made


def prepare_backward(
    seen: Hashable | None,
    tensors: Sequence[Tensor | None],
    out: Tensor,
    grad: Tensor,
    x: Tensor,
    weight: tuple[Tensor, Tensor, Tensor],
    shape: ConvShape,
) -> Backward | None:
    values, *pattern = weight
    if seen is None or not (_fit(values, grad.dtype, grad, out, x) and _are_contiguous(values)):
        return None
    sizes = tuple(out.shape), tuple(grad.shape)
    gather = _gather(grad_input_shape, sizes, grad, out, values, (*pattern,), shape)
    of_values = _grad_weight(x, grad, values.numel(), (*pattern,), shape)
    if gather is None or of_values is None:
        return None
    made = Backward(out, values, gather, of_values)
    patterns.keep_call(patterns.find(*pattern), seen, tensors, made)
    return made


def prepare_grad_weight(
    seen: Hashable | None,
    x: Tensor,
    grad: Tensor,
    dtype: torch.dtype,  # of the values
    pattern: Pattern,
    shape: ConvShape,
) -> GradWeight | None:
    if seen is None or dtype != torch.float32 or x.dtype != grad.dtype or not grad.numel():
        return None
    nnz = pattern[1].numel() * block_size_of(pattern[0], shape.rows)
    made = _grad_weight(x, grad, nnz, pattern, shape)
    if made is not None:
        patterns.keep_call(patterns.find(*pattern), seen, (x, grad), made)
    return made


def _gather(
    shape_of: call.ShapeOf,
    sizes: tuple[call.Sizes, call.Sizes],  # of x and y
    source: Tensor,
    dest: Tensor,
    values: Tensor,
    pattern: tuple[Tensor, ...],
    shape: ConvShape,
) -> Gather | None:
    crow_indices, col_indices = pattern
    prepared = call.gather_pass(
        shape_of,
        *sizes,
        shape,
        call.density_of(values.numel(), shape),
        block_size_of(crow_indices, shape.rows),
        source.dtype,
        source.stride(),
        dest.stride(),
        call.device_of(source),
        call.tf32_of(source, shape),
    )
    if not isinstance(prepared, GatherPass):
        return None
    return Gather(prepared, (crow_indices, col_indices))


def _grad_weight(
    x: Tensor, grad: Tensor, nnz: int, pattern: tuple[Tensor, ...], shape: ConvShape
) -> GradWeight | None:
    crow_indices, col_indices = pattern
    source, of_source = call.subsampled(x, grad.shape[2:], shape)
    prepared = call.grad_weight_pass(
        tuple(source.shape),
        tuple(grad.shape),
        of_source,
        call.density_of(nnz, shape),
        block_size_of(crow_indices, shape.rows),
        source.dtype,
        source.stride(),
        grad.stride(),
        call.device_of(source),
        call.tf32_of(source, of_source),
    )
    if not isinstance(prepared, GradWeightPass) or prepared.unmet:
        return None
    return GradWeight(prepared, x, grad, (crow_indices, col_indices), shape)


def _fit(values: Tensor, dtype: torch.dtype, *activations: Tensor) -> bool:
    """Whether the slab kernels read and write activations of this dtype as they are."""
    alike = all(each.dtype == dtype and each.numel() for each in activations)
    return values.dtype == torch.float32 and dtype != torch.float64 and alike


def _are_contiguous(*tensors: Tensor | None) -> bool:
    return all(each is None or each.is_contiguous() for each in tensors)


def _list_of(plan: lists.NonZeroList) -> tuple[int, int, int, int]:
    return plan.entries, address(plan.offsets), address(plan.value_index), address(plan.bounds)
