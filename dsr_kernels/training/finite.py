"""Finds the first number of a model that is nan or infinite."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn


class NonFinite(NamedTuple):
    """The first parameter or buffer with a nan or inf."""

    kind: str  # 'weight', or 'value' in a buffer: BN's statistics
    where: str  # "fc3 (1 of 90 weight_values)"


def first_non_finite(model: nn.Module, buffers: bool = True) -> NonFinite | None:
    """The first in the model's order, parameters before buffers, which may be left out; None where
    all are finite.
    """
    named = [("weight", *pair) for pair in model.named_parameters()]
    if buffers:
        named += [("value", *pair) for pair in model.named_buffers()]
    for kind, name, tensor in named:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            layer, _, what = name.rpartition(".")
            return NonFinite(kind, f"{layer} ({bad} of {tensor.numel()} {what})")
    return None


def in_words(found: NonFinite | None) -> str:
    """Where the first non-finite number is, for a message."""
    if found is None:
        return "every weight is finite"
    return f"the first non-finite {found.kind} is in {found.where}"
