"""Prepared calls of the GPU's kernels: see `backends.calls`.

Each pass is one native call, which launches all of it on torch's current stream. What runs by the
direct kernels, with tensors of several types, or by windows or not as torch's settings say from
call to call (TF32), is never prepared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from dsr_kernels.backends import calls, native
from dsr_kernels.backends.address import require_memory, span_of
from dsr_kernels.backends.blocks import block_size_of
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cuda import call, tensor_cores
from dsr_kernels.backends.cuda.plans import Direction, PassPlan
from dsr_kernels.backends.pattern import Plan
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.backends.tensors import share_with, taking_tensors

Pattern = tuple[Tensor, Tensor]  # crow_indices, col_indices


class Pass:
    """One pass of a pattern: its plan, its list, and how much memory it works in."""

    __slots__ = ("device", "handle", "list", "run", "workspace")

    def __init__(self, planned: PassPlan, pattern: Pattern) -> None:
        share_with(native._cuda)
        plan, self.device = planned.native, pattern[0].device
        self.list = call.list_of(planned, *pattern)
        self.handle = self.list.handle
        self.workspace = plan.workspace_bytes(self.handle)
        is_sum = planned.direction == "grad_weight"
        self.run = taking_tensors(plan.grad_weight if is_sum else plan.gather)

    def __call__(self, source: Tensor, *others: Tensor | None) -> None:
        queue = call.queue_of(source)
        self.list.wait(queue[1])
        workspace = torch.empty(self.workspace, dtype=torch.uint8, device=self.device)
        self.run(queue, self.handle, source, *others, workspace)


class GradWeight:
    """The gradient of the values alone: also a part of Backward."""

    __slots__ = ("__weakref__", "plans", "read", "run", "spans")

    plans: tuple[Plan, ...]

    def __init__(self, run: Pass, x: Tensor, grad: Tensor, shape: ConvShape) -> None:
        self.run, self.plans, self.read = run, (run.list,), _reads(shape, grad.shape[2:])
        self.spans = span_of(x), span_of(grad)

    def into(self, out: Tensor, x: Tensor, grad: Tensor) -> Tensor:
        x_span, grad_span = self.spans
        require_memory(x, x_span, "input")
        require_memory(grad, grad_span, "gradient")
        self.run(self.read(x), grad, out)
        return out


class Forward(calls.Call):
    __slots__ = ("gather", "read", "values_span", "x_span")

    def __init__(
        self,
        out: Tensor,  # [N, O, P, Q]
        x: Tensor,  # [N, C, H, W]
        values: Tensor,
        gather: Pass,
        shape: ConvShape,
    ) -> None:
        super().__init__(out)
        self.gather, self.plans = gather, (gather.list,)
        self.x_span, self.values_span = span_of(x), span_of(values)
        self.read = _reads(shape, out.shape[2:])

    def into(self, out: Tensor, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        require_memory(x, self.x_span, "input")
        require_memory(values, self.values_span, "weight_values")
        if bias is not None:
            require_memory(bias, bias.nbytes, "bias")
        self.gather(self.read(x), values, bias, out)
        return out


class Backward(calls.Call):
    """The gradients of x and of the values."""

    __slots__ = ("gather", "grad_weight", "values_span")

    def __init__(self, out: Tensor, values: Tensor, gather: Pass, weight: GradWeight) -> None:
        super().__init__(out)
        self.gather, self.grad_weight, self.values_span = gather, weight, span_of(values)
        self.plans = gather.list, *weight.plans

    def into(
        self, out: Tensor, out_values: Tensor, grad: Tensor, values: Tensor, x: Tensor
    ) -> None:
        require_memory(values, self.values_span, "weight_values")
        self.grad_weight.into(out_values, x, grad)  # which looks at x and grad
        self.gather(grad, values, None, out)


def _reads(shape: ConvShape, out_size: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """What a pass reads of x: see call.subsampled."""
    if not call.skips_pixels(shape):
        return lambda x: x
    size = tuple(out_size)
    return lambda x: call.every_step(x, size, shape)


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
    if seen is None or not (
        _fit(values, x.dtype, x, out) and calls.are_contiguous(values, *numbers)
    ):
        return None
    gather = _pass("forward", x, out, values.numel(), (*pattern,), shape)
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
    if seen is None or not (
        _fit(values, grad.dtype, grad, out, x) and calls.are_contiguous(values)
    ):
        return None
    gather = _pass("grad_input", out, grad, values.numel(), (*pattern,), shape)
    sums = _pass("grad_weight", x, grad, values.numel(), (*pattern,), shape)
    if gather is None or sums is None:
        return None
    made = Backward(out, values, gather, GradWeight(sums, x, grad, shape))
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
    sums = _pass("grad_weight", x, grad, nnz, pattern, shape)
    if sums is None:
        return None
    made = GradWeight(sums, x, grad, shape)
    patterns.keep_call(patterns.find(*pattern), seen, (x, grad), made)
    return made


def _pass(
    direction: Direction,
    x: Tensor,  # or x's gradient
    y: Tensor,  # or y's gradient
    nnz: int,
    pattern: tuple[Tensor, ...],
    shape: ConvShape,
) -> Pass | None:
    """None where nothing is to be prepared."""
    crow_indices, col_indices = pattern
    if direction != "grad_input":
        x, shape = call.subsampled(x, y.shape[2:], shape)
    look = direction, x, y, nnz, crow_indices, shape
    planned = call.plan_for(*look)
    if planned.kind == "direct" or (planned.unmet and direction == "grad_weight"):
        return None
    asks_torch = x.dtype == torch.float32 and tensor_cores.wanted()
    if asks_torch and call.plan_for(*look, windows=True).kind == "window":
        return None
    return Pass(planned, (crow_indices, col_indices))


def _fit(values: Tensor, dtype: torch.dtype, *activations: Tensor) -> bool:
    """Whether the kernels read and write activations of this dtype as they are."""
    alike = all(each.dtype == dtype and each.numel() for each in activations)
    return values.dtype == torch.float32 and dtype != torch.float64 and alike
