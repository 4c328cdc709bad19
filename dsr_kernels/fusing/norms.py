"""Batch norm as numbers of channels: what it does to its running statistics, and to its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.backends.fused import Affine
from dsr_kernels.fusing.plain import is_plain
from dsr_kernels.fusing.values import Held
from dsr_kernels.ops.fused.elementwise import channel_moments

_TENSORS = ("weight", "bias", "running_mean", "running_var")


def by_batch(norm: nn.BatchNorm2d) -> bool:
    """Whether it normalises by its input's own statistics now."""
    _, _, mean, variance = tensors_of(norm)
    return norm.training or mean is None or variance is None


def tensors_of(
    norm: nn.Module,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Weight, bias, running mean and running variance, without nn.Module's search for each."""
    parameters, buffers = norm._parameters, norm._buffers
    registered = "weight" in parameters and "bias" in parameters
    registered &= "running_mean" in buffers and "running_var" in buffers
    quick = registered and not torch.compiler.is_compiling()
    if quick and norm.__dict__.keys().isdisjoint(_TENSORS):
        running = buffers["running_mean"], buffers["running_var"]
        return parameters["weight"], parameters["bias"], *running
    of: Any = norm
    return of.weight, of.bias, of.running_mean, of.running_var


def count(x: Tensor) -> int:
    """Values per channel."""
    return x.numel() // max(x.shape[1], 1)


def dtype_of(x: Tensor) -> torch.dtype:
    """Of the numbers of channels that belong to x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def applies(norm: nn.Module, x: Tensor) -> bool:
    """Whether numbers of channels can stand for `norm` now; if not, it computes by itself.

    So it raises its own errors, for one value per channel, say.
    """
    if (
        not is_plain(norm, nn.BatchNorm2d)
        or not isinstance(x, Tensor)
        or x.dim() != 4
        or x.device.type not in ("cpu", "cuda")
    ):
        return False
    if not x.is_floating_point() or x.shape[1] != norm.num_features:
        return False
    if by_batch(norm):
        if count(x) < 2:
            return False
        if norm.momentum is None and torch.compiler.is_compiling():
            return False  # the average's weight is a number that a tensor holds
    wanted, device, size = dtype_of(x), x.device, x.shape[1:2]
    return all(
        t is None or (t.dtype == wanted and t.device == device and t.shape == size)
        for t in tensors_of(norm)
    )


def affine(norm: nn.BatchNorm2d, held: Held) -> Affine:
    """What `norm` does to `held`; its running statistics are updated."""
    if by_batch(norm):
        if held.mean is None or held.variance is None:
            held.mean, held.variance = channel_moments(held.x)
        mean, variance = held.mean, held.variance
        if norm.training and norm.track_running_stats:
            _update(norm, mean, variance, count(held.x))
    else:
        mean, variance = _running(norm)
    weight, bias, _, _ = tensors_of(norm)
    scale = torch.rsqrt(variance + norm.eps)
    if weight is not None:
        scale = scale * weight
    return Affine(mean, scale, torch.zeros_like(scale) if bias is None else bias)


def _running(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Its running statistics; copies where autograd may keep them beyond their next update."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    return (mean.clone() if torch.is_grad_enabled() else mean), variance


def folded(norm: nn.BatchNorm2d, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(scale, shift) that a convolution's output without its bias is to be given, in inference."""
    weight, summand, mean, variance = tensors_of(norm)
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance + norm.eps)
    if weight is not None:
        scale = scale * weight
    center = mean if bias is None else mean - bias
    if summand is None:
        return scale, -center * scale
    return scale, torch.addcmul(summand, center, scale, value=-1)


@torch.no_grad()
def _update(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, values: int) -> None:
    """As nn.BatchNorm2d in training: the variance is unbiased, a momentum of None averages."""
    momentum, batches = norm.momentum, norm.num_batches_tracked
    if batches is not None:
        batches.add_(1)
        if momentum is None:
            momentum = 1.0 / float(batches)
    momentum = 0.0 if momentum is None else momentum
    _, _, running_mean, running_variance = tensors_of(norm)
    if running_mean is None or running_variance is None:
        return
    running = running_mean, running_variance
    unbiased = variance.detach() * (values / (values - 1))
    # torch's own update leaves the versions, too: earlier graphs that saved them may go backward.
    kept = tuple(t for t in running if torch.compiler.is_compiling() or not t.is_inference())
    with torch.autograd._unsafe_preserve_version_counter(kept):
        for each, now in zip(running, (mean.detach(), unbiased), strict=True):
            each.mul_(1 - momentum).add_(now, alpha=momentum)
