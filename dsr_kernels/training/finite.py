"""Finds the first number of a model that is not one."""

from __future__ import annotations

import torch
from torch import nn


def first_non_finite(model: nn.Module) -> str | None:
    """'layer (n of m values)' for the first parameter or buffer with a nan or inf, in the model's
    order.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            return (
                f"{name.rpartition('.')[0]} ({bad} of {tensor.numel()} {name.rpartition('.')[2]})"
            )
    return None
