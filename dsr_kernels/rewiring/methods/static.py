"""Static sparsity: the pattern never changes. The baseline every method must beat."""

from __future__ import annotations

import torch
from torch import nn

from dsr_kernels.rewiring.report import LayerReport, RewireReport
from dsr_kernels.rewiring.rewirer import Rewirer


class Static(Rewirer):
    """Counts iterations like any rewirer and leaves the pattern alone.

    A training loop written for `DSR` runs unchanged with it: `step()` returns None, `rewire()`
    returns a report of nothing pruned and nothing grown.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        super().__init__(model, optimizer, stop=0)

    def rewire(self) -> RewireReport:
        """Touches nothing."""
        layers = [
            LayerReport(layer.name, layer.weight_values.numel(), 0, 0, layer.weight_values.numel())
            for layer in self._layers
        ]
        return RewireReport(self.iteration, 0.0, 0.0, 0, 0, layers, 0.0)
