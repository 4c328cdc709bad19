"""The optimizers of a rewirer: who holds which layer, and what of their state moves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from dsr_kernels.rewiring.entry_state import EntryState, Remembered
from dsr_kernels.rewiring.layers import SparseLayer
from dsr_kernels.rewiring.matrix_rules import refuse_matrix_rules
from dsr_kernels.rewiring.nested import held_parameters, is_optimizer, nested_optimizers
from dsr_kernels.rewiring.state_patterns import StatePatterns

# What a rewirer takes. Objects around optimizers need not be torch.optim.Optimizers themselves.
OneOrMore = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


class Optimizers:
    """One or more optimizers, each perhaps around others, none of which holds another's layers.

    given: a torch.optim.Optimizer, an object that has some in its attributes, or a list or tuple
    of these; None: there is nothing to move.

    Raises TypeError for anything else, and ValueError as `check` does.
    """

    def __init__(self, given: OneOrMore | None, layers: list[SparseLayer]) -> None:
        self.given = _as_list(given)
        self._patterns: list[StatePatterns] = []  # of each of them
        self.check(layers)
        self.settle(is_step=False)
        self.state_of(layers)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies of optimizers come without hooks."""
        self.__dict__.update(state)
        self._patterns = [
            StatePatterns.of(one, known)
            for one, known in zip(self.given, self._patterns, strict=True)
        ]

    @property
    def all(self) -> list[Any]:
        """The given ones and those within."""
        return nested_optimizers(*self.given)

    def check(self, layers: list[SparseLayer]) -> None:
        """Raises ValueError unless exactly one of them holds the values of each layer that trains.

        Raises ValueError, too, for one that would update them as a matrix (matrix_rules.py), and
        for one whose state cannot follow a rewire.
        """
        if not self.given:
            return
        held = [held_parameters(nested_optimizers(one)) for one in self.given]
        for layer in layers:
            if "weight_values" not in layer.module._parameters:
                raise ValueError(
                    f"layer {layer.name!r}: weight_values is not a parameter of its own "
                    "(parametrized, normalized or pruned by torch?); make that permanent first"
                )
            self._check_held_once(layer, held)
        for optimizer in self.all:
            _refuse_what_cannot_follow(optimizer, layers)
        refuse_matrix_rules(self.all, {layer.weight_values: layer.name for layer in layers})
        known = [*self._patterns, *([None] * (len(self.given) - len(self._patterns)))]
        self._patterns = [StatePatterns.of(*pair) for pair in zip(self.given, known, strict=True)]
        for patterns in self._patterns:
            patterns.know(layers)  # those it does not hold, too: add_param_group may come

    def _check_held_once(self, layer: SparseLayer, held: list[dict[int, Any]]) -> None:
        holding = [
            type(one).__name__
            for one, holds in zip(self.given, held, strict=True)
            if id(layer.weight_values) in holds
        ]
        if layer.weight_values.requires_grad and not holding:
            raise ValueError(
                f"optimizer: expected it to hold the values of layer {layer.name!r}, it does not; "
                "build it from model.parameters() after the model has become sparse, or freeze the "
                "layer with requires_grad_(False)"
            )
        if len(holding) > 1:
            raise ValueError(
                f"optimizer: expected one to hold the values of layer {layer.name!r}, but "
                f"{' and '.join(holding)} do; give the parameter to one of them only"
            )

    def settle(self, *, is_step: bool = True) -> None:
        """Moves state to patterns that the model was given beside the optimizer; see
        `StatePatterns.settle`.
        """
        for patterns in self._patterns:
            if patterns.unsettled():
                patterns.settle(is_step=is_step)

    def state_of(self, layers: list[SparseLayer]) -> list[EntryState]:
        """What is held of each layer's entries. Raises ValueError where that could not move."""
        remembered = self._remembered()
        return [
            remembered.of(layer.name, layer.weight_values, layer.weight_values.shape[0])
            for layer in layers
        ]

    def rewired(self, layers: list[SparseLayer]) -> None:
        """The state of these layers has moved to their present patterns."""
        for patterns in self._patterns:
            patterns.rewired(layers)

    def tell(self, onlooker: Any) -> None:
        """Has its `weights_given` called before a step where a layer may have been given weights.
        Does not keep it alive; a copy says so again.
        """
        for patterns in self._patterns:
            patterns.onlookers.add(onlooker)

    def remembered_of(self, parameter: nn.Parameter) -> Iterator[Any]:
        """Each dict that holds state of the parameter."""
        yield from self._remembered().holders(parameter)

    def groups_of(self, parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
        """The groups that hold these parameters."""
        held = held_parameters(self.all)
        groups = [held[id(p)][1] for p in parameters if id(p) in held]
        return list({id(group): group for group in groups}.values())

    def _remembered(self) -> Remembered:
        return Remembered(*(root for patterns in self._patterns for root in patterns.roots))


def _as_list(given: Any) -> list[Any]:
    if given is None:
        return []
    several = isinstance(given, list | tuple)
    optimizers = list(given) if several else [given]
    if several and not optimizers:
        raise ValueError("optimizer: expected at least one torch.optim.Optimizer, got none")
    for one in optimizers:
        if not any(map(is_optimizer, nested_optimizers(one))):
            within = f"{type(given).__name__} with a " if several else ""
            raise TypeError(
                f"optimizer: expected a torch.optim.Optimizer, got {within}{type(one).__name__}"
            )
    return optimizers


def _refuse_what_cannot_follow(optimizer: Any, layers: list[SparseLayer]) -> None:
    """Raises ValueError for optimizers whose state is not per weight, by their kind."""
    kind, held = type(optimizer).__name__, held_parameters([optimizer])
    name = next((x.name for x in layers if id(x.weight_values) in held), None)
    if name is None:
        return
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer: LBFGS keeps 'd', 'old_dirs' and more of all parameters in one: cannot "
            f"rewire layer {name!r} under it; use SGD, Adam or another that works per weight"
        )
    for flag in ("parameters_as_bucket_view", "_overlap_with_ddp"):  # ZeroRedundancyOptimizer's
        if getattr(optimizer, flag, False):
            raise ValueError(
                f"optimizer: {kind} with {flag.removeprefix('_')}=True keeps the values of layer "
                f"{name!r} in buckets of a fixed size: cannot rewire under it; build it without"
            )
