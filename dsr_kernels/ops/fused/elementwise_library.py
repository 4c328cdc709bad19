"""The elementwise operations, with every argument checked: schemas, kernels, results.

    channel_moments      mean and biased variance [C] of x [N, C, H, W]
    channel_affine       y = relu(affine(x) + affine(other)), where affine(x) is
                         (x - center) * scale + shift
    channel_affine_grad  with gm = grad where y is above 0 or NaN, everywhere without ReLU:
                         gx = gm * scale, gother = gm * other_scale, and sums [3, C] over batch and
                         image of gm, gm * (x - center), gm * (other - other_center)

`other` and its affine map may be absent. An `other` without one is not needed for a gradient: where
there was a ReLU, channel_affine_grad takes the output y instead, as `out`, and gother is gm. The
numbers of channels are float64 beside a float64 x and float32 otherwise. CPUs have kernels for
float32, float64 and bfloat16; everything else is composed of torch's operations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dsr_kernels.backends import cpu_elementwise
from dsr_kernels.backends.buffers import buffers
from dsr_kernels.backends.fused import Affine
from dsr_kernels.ops import library, results
from dsr_kernels.ops.fused import composed
from dsr_kernels.ops.fused.composed import per_channel, sum_over_images

ACTIVATIONS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_NUMBERS = "Tensor center, Tensor scale, Tensor shift"
_OTHER = "Tensor? other, Tensor? other_center, Tensor? other_scale, Tensor? other_shift"

for _schema in (
    "channel_moments(Tensor x) -> (Tensor, Tensor)",
    f"channel_affine(Tensor x, {_NUMBERS}, bool relu, {_OTHER}) -> Tensor",
    f"channel_affine_grad(Tensor grad, Tensor x, {_NUMBERS}, bool relu, {_OTHER}, Tensor? out)"
    " -> (Tensor, Tensor, Tensor)",
):
    library.NAMESPACE.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


# --- argument checks ------------------------------------------------------------------------------


def numbers_dtype(x: Tensor) -> torch.dtype:
    """What the channels' numbers of activations like x are."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def other_affine(
    center: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> Affine | None:
    """Raises ValueError unless the three are there together, or absent together."""
    if center is None or scale is None or shift is None:
        given = {"other_center": center, "other_scale": scale, "other_shift": shift}
        names = [name for name, tensor in given.items() if tensor is not None]
        if names:
            raise ValueError(
                "channel_affine: expected other_center, other_scale and other_shift together or "
                f"none of them, got {' and '.join(names)} alone"
            )
        return None
    return Affine(center, scale, shift)


def _check_activation(operation: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError(
            f"{operation}: expected x of shape [N, C, H, W], got {tuple(x.shape)}; x.view adds "
            "dimensions of size 1"
        )
    if x.dtype not in ACTIVATIONS:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in ACTIVATIONS)
        raise ValueError(f"{operation}: expected x of one of {names}, got {x.dtype}")


def _check_affine(prefix: str, by: Affine, x: Tensor) -> None:
    dtype, channels = numbers_dtype(x), x.shape[1]
    for name, numbers in zip(Affine._fields, by, strict=True):
        if numbers.shape != (channels,) or numbers.dtype != dtype:
            raise ValueError(
                f"channel_affine: expected {prefix}{name} of shape ({channels},) and dtype {dtype} "
                f"beside x of {x.dtype}, got {tuple(numbers.shape)} and {numbers.dtype}"
            )
        if numbers.device != x.device:
            raise ValueError(
                f"channel_affine: expected {prefix}{name} on {x.device}, got {numbers.device}"
            )


def _check_like(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.shape != x.shape or tensor.dtype != x.dtype or tensor.device != x.device:
        raise ValueError(
            f"channel_affine: expected {name} of shape {tuple(x.shape)} and {x.dtype} on "
            f"{x.device} like x, got {tuple(tensor.shape)} and {tensor.dtype} on {tensor.device}"
        )


def _check_operands(x: Tensor, by: Affine, other: Tensor | None, other_by: Affine | None) -> None:
    _check_activation("channel_affine", x)
    _check_affine("", by, x)
    if other is not None:
        _check_like("other", other, x)
    if other_by is not None:
        if other is None:
            raise ValueError(
                "channel_affine: expected other together with other_center, other_scale and "
                "other_shift, got these alone"
            )
        _check_affine("other_", other_by, x)


# --- results: all arguments checked, nothing computed ---------------------------------------------


def channel_moments_result(x: Tensor) -> tuple[Tensor, Tensor]:
    _check_activation("channel_moments", x)
    if x.shape[0] * x.shape[2] * x.shape[3] == 0:
        raise ValueError(
            "channel_moments: expected x with at least one number per channel, got shape "
            f"{tuple(x.shape)}"
        )
    mean = x.new_empty(x.shape[1], dtype=numbers_dtype(x))
    return mean, torch.empty_like(mean)


def channel_affine_result(
    x: Tensor, by: Affine, relu: bool, other: Tensor | None, other_by: Affine | None
) -> Tensor:
    _check_operands(x, by, other, other_by)
    return _empty_like(x)


def channel_affine_grad_result(
    grad: Tensor,
    x: Tensor,
    by: Affine,
    relu: bool,
    other: Tensor | None,
    other_by: Affine | None,
    out: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """gx, gother (empty where neither other nor out is given) and sums [2 or 3, C]."""
    _check_operands(x, by, other, other_by)
    _check_like("grad", grad, x)
    if other is not None and other_by is None:
        raise ValueError(
            "channel_affine_grad: expected no other where it has no affine map; with ReLU, the "
            "output as out instead"
        )
    if out is not None:
        _check_like("out", out, x)
        if other is not None or not relu:
            raise ValueError(
                "channel_affine_grad: expected out only with relu=True and without other, got "
                f"relu={relu} and {'no ' if other is None else ''}other"
            )
    gx = _empty_like(x)
    gother = x.new_empty(0) if other is None and out is None else _empty_like(x)
    return gx, gother, by.scale.new_empty((2 if other is None else 3, x.shape[1]))


def _empty_like(x: Tensor) -> Tensor:
    last = results.channels_last(x)
    if type(x) is Tensor and x.is_cpu:
        _, channels, height, width = x.shape
        pixels = height * width
        inner = (1, width * channels, channels) if last else (pixels, width, 1)
        return buffers.empty(None, x.shape, (channels * pixels, *inner), x.dtype)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)


# --- kernels --------------------------------------------------------------------------------------


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance = channel_moments_result(x)
    if cpu_elementwise.takes(x):
        return cpu_elementwise.channel_moments(mean, variance, x)
    return composed.moments(x, mean.dtype)


def channel_affine(
    x: Tensor, by: Affine, relu: bool, other: Tensor | None, other_by: Affine | None
) -> Tensor:
    out = channel_affine_result(x, by, relu, other, other_by)
    if cpu_elementwise.takes(x):
        return cpu_elementwise.channel_affine(out, x, by, relu, other, other_by)
    y = _before_relu(x, by, other, other_by)
    return out.copy_(torch.relu(y) if relu else y)


def channel_affine_grad(
    grad: Tensor,
    x: Tensor,
    by: Affine,
    relu: bool,
    other: Tensor | None,
    other_by: Affine | None,
    out: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    gx, gother, sums = channel_affine_grad_result(grad, x, by, relu, other, other_by, out)
    if cpu_elementwise.takes(x):
        to = None if other is None and out is None else gother
        cpu_elementwise.channel_affine_grad(gx, to, sums, grad, x, by, relu, other, other_by, out)
        return gx, gother, sums
    grads = composed_grad(grad, x, by, relu, other, other_by, out)
    gx.copy_(grads.x)
    if grads.other is not None:
        gother.copy_(grads.other)
    for row, found in zip(sums, grads.sums, strict=True):
        row.copy_(found)
    return gx, gother, sums


# --- the derivative, differentiable itself --------------------------------------------------------


class AffineGrads(NamedTuple):
    x: Tensor
    other: Tensor | None
    sums: tuple[Tensor, ...]  # of gm, gm * (x - center), gm * (other - other_center)


def _before_relu(x: Tensor, by: Affine, other: Tensor | None, other_by: Affine | None) -> Tensor:
    y = composed.affine(x, by)
    if other is None:
        return y
    return y + (other if other_by is None else composed.affine(other, other_by))


def composed_grad(
    grad: Tensor,
    x: Tensor,
    by: Affine,
    relu: bool,
    other: Tensor | None,
    other_by: Affine | None,
    out: Tensor | None,
) -> AffineGrads:
    """channel_affine_grad of operations that autograd can record."""
    dtype = by.scale.dtype
    gm = grad.to(dtype)
    if relu:
        y = _before_relu(x, by, other, other_by) if out is None else out
        gm = torch.where(y <= 0, torch.zeros_like(gm), gm)
    gx = (gm * per_channel(by.scale)).to(x.dtype)
    sums = (
        sum_over_images(gm),
        sum_over_images(gm * (x.to(dtype) - per_channel(by.center))),
    )
    if other is None or other_by is None:
        return AffineGrads(gx, None if out is None else gm.to(x.dtype), sums)
    gother = (gm * per_channel(other_by.scale)).to(x.dtype)
    by_other = sum_over_images(gm * (other.to(dtype) - per_channel(other_by.center)))
    return AffineGrads(gx, gother, (*sums, by_other))
