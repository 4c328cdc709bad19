"""A small model for explain, and all of it that explain leaves alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from dsr_kernels.nn import SparseConv2d, SparseLinear


def small(padding_mode: str = "zeros") -> nn.Sequential:
    return nn.Sequential(
        SparseConv2d(3, 8, 3, padding=1, padding_mode=padding_mode),
        nn.BatchNorm2d(8),
        nn.Dropout(0.5),
        SparseConv2d(8, 6, 1, bias=False),
        nn.Flatten(),
        SparseLinear(6 * 64, 4),
    )


def state_of(model: nn.Module) -> tuple[Any, ...]:
    """Tensors with their versions, modes, and how many hooks there are."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = {name: (id(t), t._version, t.clone()) for name, t in tensors.items()}
    modes = {name: m.training for name, m in model.named_modules()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return kept, modes, hooks
