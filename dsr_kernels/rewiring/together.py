"""A rewirer's part in training together: processes compare what decides a rewire before each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from torch import Tensor

from dsr_kernels.rewiring.agreement import agree, settings_of
from dsr_kernels.rewiring.entry_state import EntryState
from dsr_kernels.rewiring.layers import SparseLayer
from dsr_kernels.rewiring.optimizers import Optimizers
from dsr_kernels.rewiring.plan import RewirePlan
from dsr_kernels.rewiring.processes import processes_of


class Together:
    """Base of Rewirer. What one process alone would raise, all of them must learn, or they wait
    for it: so that lies before or within `agree`.
    """

    _layers: list[SparseLayer]
    _optimizers: Optimizers
    _looked = False  # at the layers, for values in parts
    _compared = False  # whether the settings are known to be those of all processes
    _held: Mapping[str, int] = MappingProxyType({})  # layers whose length cannot change, and where
    _agreed = False  # in this step, before the method moved weights by itself

    def _deciding_state(self, layer: SparseLayer) -> list[Tensor]:
        """What decides a rewire beside weights and settings: processes compare it before one."""
        return []

    def _compare_settings(self) -> None:
        """Raises RuntimeError where processes would rewire at different steps, before one waits.

        A model may be wrapped after the first steps, so this is called until there are processes.
        """
        if not self._looked:
            for layer in self._layers:
                layer.check_whole()
            self._looked = True
        if (processes := processes_of(self._layers)) is not None:
            agree(processes, settings_of(self, self._layers), [], [])
            self._compared = True

    @contextmanager
    def _agree_ahead(self, layers: list[SparseLayer]) -> Iterator[None]:
        """For a method that may find nothing to rewire: compares before it looks, and not again in
        a rewire within.
        """
        if processes_of(self._layers) is not None:
            self._agree(layers)
            self._agreed = True
        try:
            yield
        finally:
            self._agreed = False

    def _agree(self, layers: list[SparseLayer]) -> list[EntryState]:
        """What optimizers hold of each layer. Raises what `rewire` does where a layer, an optimizer
        or another process could not rewire.
        """
        for layer in self._layers:
            layer.check_whole()
        processes = processes_of(self._layers)
        failure: Exception | None = None
        states: list[EntryState] = []
        deciding: list[list[Tensor]] = []
        try:
            self._optimizers.check(layers)  # they may have been thawed since
            for layer in layers:
                layer.check()
            self._optimizers.settle()
            states = self._optimizers.state_of(layers)
            deciding = [self._deciding_state(layer) for layer in layers]
        except Exception as error:
            if processes is None or self._agreed:
                raise
            layers, deciding, failure = [], [], error
        if processes is not None and not self._agreed:
            held = [layer.name for layer in layers if layer.is_held()]
            settings = settings_of(self, self._layers)
            self._held = agree(processes, settings, layers, deciding, failure, held)
        return states

    def _check_held(self, plan: RewirePlan, layers: list[SparseLayer]) -> None:
        """Raises RuntimeError where some process holds the accumulator of a gradient whose length
        would change. The rewire raises it there, and the others may not go on without it.
        """
        held = {} if processes_of(self._layers) is None else self._held
        for layer, pruned, grown in zip(layers, plan.pruned, plan.grown, strict=True):
            if pruned != grown and layer.name in held and not layer.is_held():
                raise RuntimeError(
                    f"rewire: nothing was rewired, for rank {held[layer.name]} cannot: layer "
                    f"{layer.name!r}: something holds its gradient accumulator there, such as a "
                    "hook that was put on `grad_fn.next_functions`; use "
                    "weight_values.register_post_accumulate_grad_hook instead"
                )
