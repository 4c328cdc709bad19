"""Fused convolutions beside their meaning: the formulas in float64, on a dense weight."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dsr_kernels import SparseConv2d
from dsr_kernels.backends.conv_shape import ConvShape, conv_shape
from dsr_kernels.backends.fused import Affine, Prologue
from dsr_kernels.ops import reference
from dsr_kernels.ops.fused import autograd as fused
from dsr_kernels.ops.fused.autograd import Fused


class Problem(NamedTuple):
    """The arguments of one call; None: absent."""

    x: Tensor
    affine: Affine | None
    relu: bool
    values: Tensor
    bias: Tensor | None
    pattern: tuple[Tensor, Tensor]
    residual: Tensor | None
    statistics: bool
    shape: ConvShape

    def variables(self) -> list[Tensor]:
        """What gradients are taken of."""
        numbers = self.affine or ()
        found = (self.x, *numbers, self.values, self.bias, self.residual)
        return [t for t in found if t is not None]

    def map(self, change) -> Problem:
        """With change(tensor) for each tensor that gradients are taken of."""

        def one(t):
            return None if t is None else change(t)

        return self._replace(
            x=one(self.x),
            affine=self.affine and Affine(*map(one, self.affine)),
            values=one(self.values),
            bias=one(self.bias),
            residual=one(self.residual),
        )

    def leaves(self) -> Problem:
        return self.map(lambda t: t.detach().requires_grad_())

    def in_bfloat16(self) -> Problem:
        """The activations of the same values rounded."""
        residual = None if self.residual is None else self.residual.bfloat16()
        return self._replace(x=self.x.bfloat16(), residual=residual)

    def run(self) -> Fused:
        prologue = Prologue(self.affine, self.relu)
        weight = self.values, self.bias, *self.pattern
        return fused.sparse_conv2d_fused(
            self.x, prologue, *weight, self.residual, self.statistics, self.shape
        )

    def meaning(self) -> Fused:
        """The same in plain torch, with a dense weight."""
        z = self.x
        if self.affine is not None:
            center, scale, shift = (t[:, None, None] for t in self.affine)
            z = (z - center) * scale + shift
        z = F.relu(z) if self.relu else z
        weight = (self.values, self.bias, *self.pattern)
        y = reference.sparse_conv2d(z, *weight, *self.shape)
        y = y if self.residual is None else y + self.residual
        if not self.statistics:
            return Fused(y, None, None, self.x)
        variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
        return Fused(y, mean, variance, self.x)


def problem_of(
    conv: SparseConv2d,
    x: Tensor,
    affine: bool = True,
    relu: bool = True,
    residual: bool = True,
    statistics: bool = True,
) -> Problem:
    """Numbers that turn a good part of x negative, and channels of many sizes."""
    generator = torch.Generator().manual_seed(11)
    like = {"generator": generator, "dtype": x.dtype}
    shape = conv_shape(conv.weight_shape, conv.stride, conv._sides, conv.dilation, conv.groups)
    channels = x.shape[1]
    numbers = Affine(
        torch.randn(channels, **like), torch.randn(channels, **like), torch.randn(channels, **like)
    )
    with torch.no_grad():
        y = conv(x)
    added = torch.randn(y.shape, **like).contiguous(memory_format=_format_of(y))
    return Problem(
        x,
        numbers if affine else None,
        relu,
        conv.weight_values.detach(),
        None if conv.bias is None else conv.bias.detach(),
        (conv.crow_indices, conv.col_indices),
        added if residual else None,
        statistics,
        shape,
    )


def _format_of(y: Tensor) -> torch.memory_format:
    return torch.contiguous_format if y.is_contiguous() else torch.channels_last


def results(problem: Problem, computed: Fused) -> dict[str, Tensor]:
    """Outputs and gradients, of a loss in which every output has a share."""
    generator = torch.Generator().manual_seed(13)
    outputs = [t for t in computed if t is not None]
    grads = [
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in outputs
    ]
    grads = [
        g.contiguous(memory_format=_format_of(t)) if g.dim() == 4 else g
        for g, t in zip(grads, outputs, strict=True)
    ]
    # Sums over many pixels: their gradients count as much as those of the pixels.
    named = dict(zip(("y", "mean", "variance", "passed")[: len(outputs)], outputs, strict=True))
    found = torch.autograd.grad(outputs, problem.variables(), grads)
    names = ["x", *(("center", "scale", "shift") if problem.affine else ()), "values"]
    names += ["bias"] if problem.bias is not None else []
    names += ["residual"] if problem.residual is not None else []
    named |= {f"gradient of {name}": t for name, t in zip(names, found, strict=True)}
    return {name: t.detach() for name, t in named.items()}


def check_problem(problem: Problem) -> None:
    """Ours beside float64: outputs and all gradients, relative to the largest one of each."""
    low = problem.x.dtype == torch.bfloat16
    ours = results(leaves := problem.leaves(), leaves.run())
    wide = problem.map(lambda t: t.double()).leaves()
    expected = results(wide, wide.meaning())
    rounding = 4e-2 if low else 5e-5 if problem.x.dtype == torch.float32 else 1e-10
    for name, truth in expected.items():
        got = ours[name].double()
        assert got.shape == truth.shape, name
        scale = truth.abs().max().clamp(min=1.0)
        worst = (got - truth).abs().max() / scale
        assert worst <= rounding, f"{name}: off by {worst:.2g} of {scale:.3g}"
