"""What a fused convolution does beside convolving: on the way in, on the way out, and in backward.

    z = relu((x - center) * scale + shift)        Prologue, while the input is packed
    y = relu(conv2d(z, W) * scale + bias + residual)   Epilogue, while it is stored
    g = gy + (y - center) * scale + shift         the gradient of y, by way of its statistics too

Each part may be absent. Tensors of one number a channel have the values' dtype and are contiguous.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Affine(NamedTuple):
    """(x - center) * scale + shift, for each channel. [C] each."""

    center: Tensor
    scale: Tensor
    shift: Tensor


def flat(by: Affine | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As arguments of an operation: three tensors, or none."""
    return (None, None, None) if by is None else by


class Prologue(NamedTuple):
    """What happens to the input of a convolution: the affine map, then ReLU."""

    affine: Affine | None = None
    relu: bool = False


class Epilogue(NamedTuple):
    """What happens to the output of a convolution, in this order."""

    scale: Tensor | None = None  # [O], before the bias
    residual: Tensor | None = None  # [N, O, P, Q], of the output's dtype
    relu: bool = False
    statistics: tuple[Tensor, Tensor] | None = None  # mean and variance [O] of y, to be filled


class StatisticsGrad(NamedTuple):
    """What the gradients of y's statistics add to the gradient of y."""

    y: Tensor  # [N, O, P, Q]
    affine: Affine


class InputGrad(NamedTuple):
    """What the gradient of z becomes that of x by, while it is stored:

        gx = gz * 1[z > 0] * scale + passed

    and the sums over batch and image of gz * 1[z > 0] times (x - center), and alone.
    """

    x: Tensor  # [N, C, H, W]
    prologue: Prologue
    passed: Tensor | None  # [N, C, H, W], of the gradient's dtype
    sums: tuple[Tensor, Tensor] | None  # gradients of scale and of shift [C], to be filled

    @property
    def changes(self) -> bool:
        """Whether the gradient of x is another than that of z."""
        affine, relu = self.prologue
        return relu or not affine is self.passed is None
