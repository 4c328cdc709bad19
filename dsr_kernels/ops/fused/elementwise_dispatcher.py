"""The elementwise operations as torch's dispatcher calls them, with flat arguments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dsr_kernels.backends.fused import Affine, flat
from dsr_kernels.ops.autograd import is_recorded
from dsr_kernels.ops.dispatcher import refuse_functorch, refuse_unsupported, register
from dsr_kernels.ops.fused import elementwise
from dsr_kernels.ops.fused import elementwise_library as library
from dsr_kernels.ops.fused.elementwise import OPS
from dsr_kernels.ops.fused.elementwise_library import other_affine

MaybeTensor = Tensor | None
Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


def _flat_affine(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(
        x: Tensor,
        center: Tensor,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        other: MaybeTensor,
        other_center: MaybeTensor,
        other_scale: MaybeTensor,
        other_shift: MaybeTensor,
    ) -> Tensor:
        other_by = other_affine(other_center, other_scale, other_shift)
        return op(x, Affine(center, scale, shift), relu, other, other_by)

    return call


def _flat_affine_grad(op: Callable[..., Triple]) -> Callable[..., Triple]:
    def call(
        grad: Tensor,
        x: Tensor,
        center: Tensor,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        other: MaybeTensor,
        other_center: MaybeTensor,
        other_scale: MaybeTensor,
        other_shift: MaybeTensor,
        out: MaybeTensor,
    ) -> Triple:
        other_by = other_affine(other_center, other_scale, other_shift)
        return op(grad, x, Affine(center, scale, shift), relu, other, other_by, out)

    return call


# --- at the Autograd key --------------------------------------------------------------------------


def _below_moments(x: Tensor) -> Pair:
    with torch._C._AutoDispatchBelowAutograd():
        mean, variance = OPS.channel_moments.default(x)
    return mean, variance


def _below_affine(
    x: Tensor, by: Affine, relu: bool, other: MaybeTensor, other_by: Affine | None
) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return OPS.channel_affine.default(x, *by, relu, other, *flat(other_by))


def _below_affine_grad(
    grad: Tensor,
    x: Tensor,
    by: Affine,
    relu: bool,
    other: MaybeTensor,
    other_by: Affine | None,
    out: MaybeTensor,
) -> Triple:
    with torch._C._AutoDispatchBelowAutograd():
        gx, gother, sums = OPS.channel_affine_grad.default(
            grad, x, *by, relu, other, *flat(other_by), out
        )
    return gx, gother, sums


def _is_recorded(tensors: tuple[MaybeTensor, ...]) -> bool:
    refuse_unsupported(tuple(t for t in tensors if t is not None))
    if not is_recorded(tensors):
        return False
    refuse_functorch()
    return True


def _recorded_moments(x: Tensor) -> Pair:
    if _is_recorded((x,)):
        mean, variance = elementwise.ChannelMoments.apply(_below_moments, x)
        return mean, variance
    return _below_moments(x)


def _recorded_affine(
    x: Tensor, by: Affine, relu: bool, other: MaybeTensor, other_by: Affine | None
) -> Tensor:
    numbers, other_numbers = by, flat(other_by)
    if _is_recorded((x, *numbers, other, *other_numbers)):
        function = elementwise.ChannelAffine
        return function.apply(_below_affine, x, *numbers, relu, other, *other_numbers)
    return _below_affine(x, by, relu, other, other_by)


def _recorded_affine_grad(
    grad: Tensor,
    x: Tensor,
    by: Affine,
    relu: bool,
    other: MaybeTensor,
    other_by: Affine | None,
    out: MaybeTensor,
) -> Triple:
    if _is_recorded((grad, x, *by, other, *flat(other_by), out)):
        raise RuntimeError(
            "channel_affine_grad: has no derivative; differentiate channel_affine twice"
        )
    return _below_affine_grad(grad, x, by, relu, other, other_by, out)


# --- registration ---------------------------------------------------------------------------------


register(
    "channel_moments",
    library.channel_moments,
    library.channel_moments_result,
    _recorded_moments,
)
register(
    "channel_affine",
    _flat_affine(library.channel_affine),
    _flat_affine(library.channel_affine_result),
    _flat_affine(_recorded_affine),
)
register(
    "channel_affine_grad",
    _flat_affine_grad(library.channel_affine_grad),
    _flat_affine_grad(library.channel_affine_grad_result),
    _flat_affine_grad(_recorded_affine_grad),
)
