"""The rigged lottery (Evci et al., ICML 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dsr_kernels.rewiring.layerwise import LayerwiseRewirer


class RigL(LayerwiseRewirer):
    """Each layer loses its smallest weights and grows as many where the gradient is largest.

    The fraction that goes falls along a cosine from `fraction` (alpha) at the start to 0 at `stop`
    (or after `length` iterations). Arguments are those of `LayerwiseRewirer`. Two departures from
    the paper: what was pruned may not come back at once, as everywhere in this library; and the
    optimizer makes its step before a rewire too.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, **arguments: Any
    ) -> None:
        defaults = {"fraction_schedule": "cosine", "growth": "gradient"}
        super().__init__(model, optimizer, **defaults | arguments)
