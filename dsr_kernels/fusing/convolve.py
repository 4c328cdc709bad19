"""Runs a convolution with what goes in and out of it: by the fused operations where they apply."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsr_kernels.backends.fused import Prologue
from dsr_kernels.fusing import dense, norms
from dsr_kernels.fusing.plain import is_plain
from dsr_kernels.fusing.values import Deferred, Held, Pending, hold, whole
from dsr_kernels.nn.layers import SparseConv2d
from dsr_kernels.ops.fused.autograd import Fused

DTYPES = (torch.float32, torch.float64)  # of weights and of numbers of channels


def can_wait(layer: nn.Module) -> bool:
    """Whether it may run where its output is used: nobody is told when it runs."""
    return is_plain(layer, SparseConv2d) or is_plain(layer, nn.Conv2d)


def takes(layer: nn.Module, deferred: Deferred) -> bool:
    """Whether the layer computes `deferred` while it reads its input."""
    x, by = deferred.held.x, deferred.by
    if deferred.other is not None or not _is_fused(layer, x) or x.dtype != _read_as(x):
        return False  # batch norm would see x after autocast has rounded it
    return by is None or by.scale.dtype == _values_dtype(layer)


def pending(layer: nn.Module, value: Any) -> Pending:
    """The convolution of a value by a layer that can wait."""
    if isinstance(value, Deferred) and takes(layer, value):
        return Pending(layer, value.held, Prologue(value.by, value.relu), True, False)
    held = hold(value)
    return Pending(layer, held, Prologue(), _is_fused(layer, held.x), isinstance(value, Held))


def run(pending: Pending, wanted: tuple[nn.Module, ...] = ()) -> Held:
    """The output of the convolution, with the statistics that the norms `wanted` need now."""
    if pending.scale is not None:
        return Held(_folded(pending))
    layer: Any = pending.layer
    held, prologue, residual = pending.held, pending.prologue, pending.residual
    x = held.x
    if not pending.fused:
        thins = dense.thins(layer, x)
        y = dense.thinned(layer, x, layer.weight, layer.bias) if thins else layer(held.given)
        return Held(y if residual is None else y + residual.x)
    inside = residual is not None and _fits(layer, x, residual.x)
    measured = (residual is None or inside) and x.shape[0] > 0
    statistics = measured and any(_by_batch(norm) for norm in wanted)
    shared = pending.shared and torch.is_grad_enabled() and x.requires_grad
    if prologue.affine is None and not (prologue.relu or inside or statistics or shared):
        return Held(layer(x) if residual is None else layer(x) + residual.x)
    fused = _fused(layer, x, prologue, residual.x if inside and residual else None, statistics)
    if fused.x.dtype == x.dtype:  # autocast has not made another of it
        held.x = fused.x
    if residual is not None and not inside:
        return Held(fused.y + residual.x)
    out = Held(fused.y)
    if norms.count(fused.y) > 1:
        out.mean, out.variance = fused.mean, fused.variance
    return out


def can_fold(pending: Pending, norm: nn.Module) -> bool:
    """Whether `norm` is but a factor and a summand of the output now, and nothing is recorded."""
    if torch.is_grad_enabled() or not is_plain(norm, nn.BatchNorm2d):
        return False
    layer: Any = pending.layer
    x = pending.held.x
    if x.dim() != 4 or norms.by_batch(norm) or norm.num_features != layer.out_channels:
        return False
    tensors = *norms.tensors_of(norm), layer.bias
    wanted = _values_dtype(layer)
    if wanted not in DTYPES or x.device.type not in ("cpu", "cuda"):
        return False
    if not all(t is None or (t.dtype == wanted and t.device == x.device) for t in tensors):
        return False
    if isinstance(layer, SparseConv2d):
        return pending.fused
    return layer.padding_mode == "zeros" and x.dtype == wanted and layer.weight.numel() <= x.numel()


def takes_residual(pending: Pending, other: Tensor) -> bool:
    """Whether the convolution adds `other` while it stores."""
    if pending.residual is not None or pending.relu:
        return False
    return pending.fused and _fits(pending.layer, pending.held.x, other)


def _folded(pending: Pending) -> Tensor:
    layer: Any = pending.layer
    scale, shift, residual = pending.scale, pending.shift, pending.residual
    assert scale is not None
    assert shift is not None
    if isinstance(layer, SparseConv2d):
        more = None if residual is None else residual.x
        return layer.folded(pending.held.x, pending.prologue, scale, shift, more, pending.relu)
    z = whole(Deferred(pending.held, *pending.prologue))
    weight = layer.weight * scale[:, None, None, None]
    sizes = layer.stride, layer.padding, layer.dilation, layer.groups
    thins = dense.thins(layer, z)
    y = dense.thinned(layer, z, weight, shift) if thins else F.conv2d(z, weight, shift, *sizes)
    y = y if residual is None else y + residual.x
    return y.relu() if pending.relu else y


def _fused(
    layer: nn.Module, x: Tensor, prologue: Prologue, residual: Tensor | None, statistics: bool
) -> Fused:
    if isinstance(layer, SparseConv2d):
        return layer.fused(x, prologue, residual, statistics)
    assert isinstance(layer, nn.Conv2d)
    return dense.fused(layer, x, prologue, residual, statistics)


def _is_fused(layer: nn.Module, x: Tensor) -> bool:
    """Whether the fused operation computes this layer now, of an input of this kind."""
    if x.dim() != 4 or not (x.is_cpu or x.is_cuda) or not x.is_floating_point():
        return False
    if is_plain(layer, SparseConv2d):
        if layer.padding_mode != "zeros" or "weight_values" not in layer._parameters:
            return False
    elif not (is_plain(layer, nn.Conv2d) and dense.through_fused(layer, x)):
        return False
    if x.shape[1] != layer.in_channels:
        return False
    values = _values_dtype(layer)
    return values in DTYPES and (x.dtype == torch.float64) == (values == torch.float64)


def _fits(layer: nn.Module, x: Tensor, other: Tensor) -> bool:
    """Whether `other` can be added to the output while it is stored."""
    if other.dim() != 4 or other.dtype != _read_as(x) or other.device != x.device:
        return False
    return tuple(other.shape) == (x.shape[0], layer.out_channels, *_plane(layer, x))


def _plane(layer: Any, x: Tensor) -> list[int]:
    sides = layer._sides if isinstance(layer, SparseConv2d) else dense.sides(layer)
    pairs = (sides[0] + sides[1], sides[2] + sides[3])
    each = zip(x.shape[2:], pairs, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    return [(size + more - d * (k - 1) - 1) // step + 1 for size, more, d, k, step in each]


def _by_batch(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    return is_plain(norm, nn.BatchNorm2d) and norms.by_batch(norm)


def _values_dtype(layer: Any) -> torch.dtype:
    name = "weight_values" if isinstance(layer, SparseConv2d) else "weight"
    if not torch.compiler.is_compiling() and name not in layer.__dict__:
        weight = layer._parameters.get(name)  # nn.Module's search takes longer
        if weight is not None:
            return weight.dtype
    return getattr(layer, name).dtype


def _read_as(x: Tensor) -> torch.dtype:
    """What a convolution reads x as: autocast's dtype, or its own."""
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)
