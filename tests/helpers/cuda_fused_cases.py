"""Fused convolutions by the GPU's kernels, against their meaning in plain operations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dsr_kernels import SparseConv2d
from dsr_kernels.backends.conv_shape import ConvShape, conv_shape
from dsr_kernels.backends.cuda import fused
from dsr_kernels.backends.dispatch import FusedBackend
from dsr_kernels.backends.fused import Affine, Epilogue, InputGrad, Prologue, StatisticsGrad
from dsr_kernels.ops.fused import composed, library

# What is there besides the convolution: all of it, nothing, and parts.
PARTS = {
    "everything": {},
    "nothing": {"affine": False, "relu": False, "statistics": False, "added": False},
    "relu": {"affine": False, "added": False},
    "affine": {"relu": False, "statistics": False},
}


class Problem(NamedTuple):
    """The tensors of all calls, in the names of backends.fused."""

    x: Tensor
    prologue: Prologue
    values: Tensor
    bias: Tensor | None
    pattern: tuple[Tensor, Tensor]
    shape: ConvShape
    residual: Tensor | None
    out_scale: Tensor
    grad: Tensor
    by_statistics: StatisticsGrad | None
    passed: Tensor | None

    def to(self, activations: torch.dtype, numbers: torch.dtype) -> Problem:
        """On the CPU, in these types."""

        def low(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.cpu().to(activations)

        def high(affine: Affine | None) -> Affine | None:
            return affine and Affine(*(t.cpu().to(numbers) for t in affine))

        by = self.by_statistics
        return Problem(
            low(self.x),
            Prologue(high(self.prologue.affine), self.prologue.relu),
            self.values.cpu().to(numbers),
            None if self.bias is None else self.bias.cpu().to(numbers),
            tuple(t.cpu() for t in self.pattern),
            self.shape,
            low(self.residual),
            self.out_scale.cpu().to(numbers),
            low(self.grad),
            by and StatisticsGrad(low(by.y), high(by.affine)),
            low(self.passed),
        )


def affine(channels: int, like: Tensor) -> Affine:
    made = torch.randn(3, channels, dtype=like.dtype)
    return Affine(*made.to(like.device))


def shape_of(conv: SparseConv2d) -> ConvShape:
    return conv_shape(conv.weight_shape, conv.stride, conv._sides, conv.dilation, conv.groups)


def problem(conv: SparseConv2d, x: Tensor, affine_of=affine, **parts: bool) -> Problem:
    """Around a layer and its input, with random tensors for whatever `parts` does not drop."""
    torch.manual_seed(5)
    values = conv.weight_values.detach()
    y = torch.randn(conv(x).shape).to(x)
    has = {"affine": True, "relu": True, "statistics": True, "added": True} | parts
    channels, rows = x.shape[1], y.shape[1]
    return Problem(
        x,
        Prologue(affine_of(channels, values) if has["affine"] else None, has["relu"]),
        values,
        None if conv.bias is None else conv.bias.detach(),
        (conv.crow_indices, conv.col_indices),
        shape_of(conv),
        torch.randn(y.shape).to(x) if has["added"] else None,
        torch.randn(rows).to(values),
        torch.randn(y.shape).to(x),
        StatisticsGrad(y, affine(rows, values)) if has["statistics"] else None,
        torch.randn(x.shape).to(x) if has["added"] else None,
    )


def results(p: Problem, backend: FusedBackend = fused) -> dict[str, Tensor]:
    """What each of the backend's functions fills; it must take the calls."""
    empty = torch.full_like if backend is fused else lambda t, _: torch.empty_like(t)
    y, folded = empty(p.grad, torch.nan), empty(p.grad, torch.nan)
    gx, gvalues = empty(p.x, torch.nan), empty(p.values.flatten(), torch.nan)
    mean, variance = p.out_scale.new_empty(2, p.grad.shape[1])
    gscale, gshift = p.out_scale.new_empty(2, p.x.shape[1])
    statistics = (mean, variance) if p.by_statistics is not None else None
    sums = (gscale, gshift) if p.prologue.affine is not None else None
    forward = p.x, p.prologue, p.values, p.bias, *p.pattern
    calls = (
        backend.sparse_conv2d_fused(
            y, *forward, Epilogue(None, p.residual, False, statistics), p.shape
        ),
        backend.sparse_conv2d_fused(
            folded, *forward, Epilogue(p.out_scale, p.residual, True), p.shape
        ),
        backend.sparse_conv2d_fused_grad_input(
            gx,
            p.grad,
            p.by_statistics,
            p.values,
            *p.pattern,
            InputGrad(p.x, p.prologue, p.passed, sums),
            p.shape,
        ),
        backend.sparse_conv2d_fused_grad_weight(
            gvalues, p.x, p.prologue, p.grad, p.by_statistics, *p.pattern, p.shape
        ),
    )
    assert not any(done is None for done in calls)
    found = {"y": y, "folded": folded, "gx": gx, "gvalues": gvalues}
    found |= {} if statistics is None else {"mean": mean, "variance": variance}
    return found | ({} if sums is None else {"gscale": gscale, "gshift": gshift})


def by_operations(p: Problem) -> dict[str, Tensor]:
    """As `results`, of the operations."""
    by, values = p.by_statistics, p.values
    y, mean, variance = library.sparse_conv2d_fused(
        p.x, p.prologue, values, p.bias, *p.pattern, p.residual, by is not None, p.shape
    )
    gx, gscale, gshift = library.sparse_conv2d_fused_grad_input(
        p.grad, by, values, *p.pattern, p.x, p.prologue, p.passed, p.shape
    )
    gvalues = library.sparse_conv2d_fused_grad_weight(
        p.x, p.prologue, p.grad, by, *p.pattern, p.shape, values.dtype
    )
    bias = torch.zeros_like(p.out_scale) if p.bias is None else p.bias
    folded = library.sparse_conv2d_folded(
        p.x, p.prologue, values, *p.pattern, p.out_scale, bias, p.residual, True, p.shape
    )
    found = {"y": y, "folded": folded, "gx": gx, "gvalues": gvalues}
    found |= {"mean": mean, "variance": variance} if mean.numel() else {}
    return found | ({"gscale": gscale, "gshift": gshift} if gscale.numel() else {})


class Meaning(NamedTuple):
    """What plain operations give in the problem's own types, and in float64."""

    same: dict[str, Tensor]
    exact: dict[str, Tensor]


def meaning(p: Problem) -> Meaning:
    return Meaning(
        results(p.to(p.x.dtype, p.values.dtype), composed),
        results(p.to(torch.float64, torch.float64), composed),
    )


def check(
    p: Problem,
    found: dict[str, Tensor],
    expected: Meaning | None = None,
    unit: float | None = None,
) -> None:
    """Against plain operations in float64, by what those in the problem's own types reach.

    `unit`: of the last place of operands, where it is not that of the activations.
    """
    unit = torch.finfo(p.x.dtype).eps if unit is None else unit
    same, exact = expected or meaning(p)
    for name, tensor in found.items():
        if name not in ("mean", "variance"):
            close(name, tensor.cpu(), same[name], exact[name], unit)
    if "mean" in found:
        check_statistics(found)


def close(name: str, ours: Tensor, same: Tensor, exact: Tensor, unit: float) -> None:
    """As nn_cases.within_rule; sums of rounded products have a unit of operands beside."""
    assert ours.shape == exact.shape, name
    if not exact.numel():
        return
    rounding = 0.505 * torch.finfo(ours.dtype).eps * exact.abs()
    error = ((ours.double() - exact).abs() - rounding).amax().item()
    beside = unit * exact.abs().amax().item()
    allowed = 2 * (same.double() - exact).abs().amax().item() + beside + 1e-5
    assert error <= allowed, f"{name}: {error} > {allowed}"  # False for NaN


def check_statistics(found: dict[str, Tensor]) -> None:
    """They are those of y as it is stored."""
    y = found["y"].cpu().double()
    variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    error = (found["mean"].cpu() - mean).abs()
    assert (error <= 1e-6 * (mean.abs() + variance.sqrt())).all(), error
    apart = (found["variance"].cpu() - variance).abs()
    assert (apart <= 1e-5 * variance + 1e-12 * mean**2).all(), apart / variance
