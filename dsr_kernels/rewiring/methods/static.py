"""Static sparsity: the pattern never changes. Every method must beat this baseline."""

from __future__ import annotations

from torch import nn

from dsr_kernels.rewiring.optimizers import OneOrMore
from dsr_kernels.rewiring.recipe_keys import Arguments, MethodRecipe
from dsr_kernels.rewiring.report import LayerReport, RewireReport
from dsr_kernels.rewiring.rewirer import Rewirer


class Static(Rewirer):
    """Counts iterations like any rewirer and leaves the pattern alone.

    State follows a pattern that the model is given beside the optimizer, as under any rewirer.
    A training loop written for `DSR` runs unchanged with it: `step()` returns None, `rewire()`
    returns a report of nothing pruned and nothing grown.
    """

    WHOLE_KERNELS = True

    def __init__(self, model: nn.Module, optimizer: OneOrMore | None = None) -> None:
        super().__init__(model, optimizer, stop=0)

    @classmethod
    def recipe_arguments(cls, recipe: MethodRecipe, epoch_length: int) -> Arguments:
        return {}  # not even a seed

    def _compare_settings(self) -> None:
        """Processes have nothing to agree on."""

    def rewire(self) -> RewireReport:
        """Changes nothing."""
        layers = [
            LayerReport(layer.name, layer.weight_values.numel(), 0, 0, layer.weight_values.numel())
            for layer in self._layers
        ]
        return RewireReport(self.iteration, 0.0, 0.0, 0, 0, layers, 0.0)
