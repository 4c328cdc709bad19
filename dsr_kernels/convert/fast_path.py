"""The fast path of torch's transformer encoders, which reads the weights of linear layers.

In eval mode without gradients nn.TransformerEncoderLayer hands `linear1.weight` to one function,
and nn.TransformerEncoder looks at its first layer's. So their fast path is turned off where these
linear layers are sparse, by the attributes that torch itself looks at. A module keeps what its
attribute was, in `_flag_when_dense`, and gets it back where the layers are dense.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from dsr_kernels.nn import SparseModule

KEPT = "_flag_when_dense"


def set_flags(model: nn.Module) -> None:
    """Turns the fast path off where linear layers are sparse now, on where they no longer are."""
    for module in model.modules():
        flag, off = _flag(module)
        kept = vars(module)
        if _is_sparse(module):
            kept.setdefault(KEPT, getattr(module, flag, off))
            setattr(module, flag, off)
        elif KEPT in kept:
            setattr(module, flag, kept.pop(KEPT))


def _flag(module: nn.Module) -> tuple[str, Any]:
    """The attribute that torch looks at, and its value where there is no fast path."""
    if isinstance(module, nn.TransformerEncoder):
        return "use_nested_tensor", False
    return "activation_relu_or_gelu", 0


def _is_sparse(module: nn.Module) -> bool:
    if isinstance(module, nn.TransformerEncoder):
        return any(map(_is_sparse, module.layers))
    if not isinstance(module, nn.TransformerEncoderLayer):
        return False
    linears = (getattr(module, name, None) for name in ("linear1", "linear2"))
    return any(isinstance(linear, SparseModule) for linear in linears)
