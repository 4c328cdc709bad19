"""The engine below every rewiring method: which tensors move, when, and all of them or none."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dsr_kernels.rewiring.layers import (
    SparseLayer,
    check_same_pattern,
    find_layers,
    match_followers,
)
from dsr_kernels.rewiring.move import Move
from dsr_kernels.rewiring.plan import open_plan
from dsr_kernels.rewiring.report import LayerReport, RewireReport
from dsr_kernels.rewiring.schedule import Schedule, as_int

STATE_VERSION = 1


class Rewirer:
    """Base of the methods, which say what to prune (`_prune`) and how to share growth (`_grow`).

    Args:
        model: holds the sparse modules.
        optimizer: holds their values; its state moves with the survivors.
        every: rewire after every so many iterations (default 100).
        schedule: instead of `every`, [(start_iteration, every), ...].
        stop: iterations from this one on are not followed by a rewire.
        seed: of the grown positions; with the same seed the same weights are rewired in the same
            way, bit for bit, on any number of threads and on any device.

    A rewire that raises has changed nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        *,
        every: int | None = None,
        schedule: Sequence[tuple[int, int]] | None = None,
        stop: int | None = None,
        seed: int = 0,
    ) -> None:
        self._layers = find_layers(model)
        self._optimizer = optimizer
        if optimizer is not None:
            _check_optimizer(optimizer, self._layers)
        self.schedule = Schedule.make(every, schedule, stop)
        self.seed = as_int(seed, "seed", 0)
        if self.seed >= 2**64:
            raise ValueError(f"seed: expected less than 2**64, got {seed}")
        self.threshold = 0.0
        self.iteration = 0  # finished iterations
        self.rewires = 0  # finished rewires: numbers their random streams

    @property
    def nnz(self) -> int:
        """Non-zeros of all trainable sparse layers: conserved by every rewire."""
        return sum(layer.values.numel() for layer in self._live_layers())

    def step(self) -> RewireReport | None:
        """Counts a finished iteration (call it after `optimizer.step()`); rewires if one is due."""
        self.iteration += 1
        if not self.schedule.due(self.iteration):
            return None
        try:
            return self.rewire()
        except BaseException:
            self.iteration -= 1
            raise

    def rewire(self) -> RewireReport:
        """Rewires now.

        Raises ValueError naming the layer for NaN or infinite weights and for anything that cannot
        be moved (foreign optimizer state, tensors on several devices, averages with another
        pattern); NotImplementedError on a GPU, where this build has no CUDA kernels.
        """
        start = time.perf_counter()
        layers = self._live_layers()
        if self._optimizer is not None:
            _check_optimizer(self._optimizer, layers)  # layers may have been thawed since
        for layer in layers:
            layer.check()
        plan = open_plan(layers)
        threshold, next_threshold = self._prune(plan)
        self._grow(plan)
        moves = [
            Move(layer, nnz, self._optimizer)
            for layer, nnz in zip(layers, plan.nnz_after, strict=True)
        ]
        plan.apply(self.seed, self.rewires, [move.output() for move in moves])
        report = RewireReport(
            step=self.iteration,
            threshold=threshold,
            next_threshold=next_threshold,
            pruned=sum(plan.pruned),
            grown=sum(plan.grown),
            layers=[
                LayerReport(layer.name, layer.values.numel(), pruned, grown, after)
                for layer, pruned, grown, after in zip(
                    layers, plan.pruned, plan.grown, plan.nnz_after, strict=True
                )
            ],
            seconds=0.0,
        )
        _commit(moves)
        self.threshold = next_threshold
        self.rewires += 1
        return dataclasses.replace(report, seconds=time.perf_counter() - start)

    def follow(self, model: nn.Module) -> None:
        """Lets a copy of the model, such as an average of its weights, follow every rewire.

        Averages of survivors move with them, those of grown weights start at 0. `model` is a deep
        copy of the model or a `torch.optim.swa_utils.AveragedModel` of it, with the same patterns.
        Raises ValueError if it is not.
        """
        copies = match_followers(self._layers, model)
        for layer, copy in zip(self._layers, copies, strict=True):
            check_same_pattern(layer.name, layer.module, copy.name, copy.module)
            if copy.values is layer.values:
                raise ValueError("follow: expected a copy of the model, got the model itself")
        for layer, copy in zip(self._layers, copies, strict=True):
            layer.followers += [(copy.name, copy.module), *copy.sharers]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings: what a resumed run needs beside model and optimizer."""
        return {
            "version": STATE_VERSION,
            "method": type(self).__name__,
            "iteration": self.iteration,
            "rewires": self.rewires,
            "seed": self.seed,
            **self._policy_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken. The schedule stays the one given at construction.

        Raises ValueError for a state of another version, method or mode, or with other keys.
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise ValueError(f"state_dict: expected keys {sorted(own)}, got {sorted(state)}")
        for key in ("version", "method"):
            if state[key] != own[key]:
                raise ValueError(f"state_dict: expected {key} {own[key]!r}, got {state[key]!r}")
        numbers = {key: as_int(state[key], key, 0) for key in ("iteration", "rewires", "seed")}
        self._load_policy_state(state)
        self.iteration = numbers["iteration"]
        self.rewires = numbers["rewires"]
        self.seed = numbers["seed"]

    # ---- what a method decides ----------------------------------------------------------------

    def _prune(self, plan: Any) -> tuple[float, float]:
        """Prunes in `plan`; returns the threshold used and the next one. Must not change `self`."""
        raise NotImplementedError(f"{type(self).__name__} does not prune")

    def _grow(self, plan: Any) -> None:
        """Gives as many entries back as were pruned."""
        plan.grow_proportionally()

    def _policy_state(self) -> dict[str, Any]:
        """The method's part of `state_dict`."""
        return {}

    def _load_policy_state(self, state: dict[str, Any]) -> None:
        """Takes back what `_policy_state` gave; raises before changing anything."""

    # ---- details ------------------------------------------------------------------------------

    def _live_layers(self) -> list[SparseLayer]:
        """Frozen layers do not train, so they neither give nor take."""
        return [layer for layer in self._layers if layer.values.requires_grad]


def _check_optimizer(optimizer: Any, layers: list[SparseLayer]) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for layer in layers:
        if layer.values.requires_grad and id(layer.values) not in held:
            raise ValueError(
                f"optimizer: expected it to hold the values of layer {layer.name!r}, it does not; "
                "build it from model.parameters() after the model has become sparse, or freeze the "
                "layer with requires_grad_(False)"
            )


def _commit(moves: list[Move]) -> None:
    """Makes all moves or, if one fails, none."""
    made: list[Move] = []
    try:
        for move in moves:
            made.append(move)
            move.make()
    except BaseException:
        for move in reversed(made):
            move.undo()
        raise
