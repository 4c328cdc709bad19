"""The engine below every rewiring method: which tensors move, when, and all of them or none."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.rewiring.layers import (
    SparseLayer,
    check_optimizer,
    check_same_pattern,
    find_layers,
    match_followers,
)
from dsr_kernels.rewiring.move import Move, commit
from dsr_kernels.rewiring.plan import open_plan
from dsr_kernels.rewiring.report import LayerReport, RewireReport
from dsr_kernels.rewiring.schedule import Schedule, as_int

STATE_VERSION = 2
Ranks = list[Tensor | None]  # of each layer: [grown] int64, which of its free positions; None: any


class Rewirer:
    """Base of the methods, which say what goes (`_prune`) and what comes back (`_grow`).

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
            check_optimizer(optimizer, self._layers)
        self.schedule = Schedule.make(every, schedule, stop)
        self.seed = as_int(seed, "seed", 0)
        if self.seed >= 2**64:
            raise ValueError(f"seed: expected less than 2**64, got {seed}")
        self.threshold = 0.0
        self.iteration = 0  # finished iterations
        self.rewires = 0  # finished rewires: numbers their random streams

    @property
    def nnz(self) -> int:
        """Non-zeros of all trainable sparse layers."""
        return sum(layer.weight_values.numel() for layer in self._live_layers())

    def step(self) -> RewireReport | None:
        """Counts a finished iteration (call it after `optimizer.step()`); rewires if one is due."""
        self.iteration += 1
        try:
            report = self.rewire() if self.due(self.iteration) else None
        except BaseException:
            self.iteration -= 1
            raise
        self._iteration_done()
        return report

    def take_report(self) -> RewireReport | None:
        """What has been rewired and not been reported yet, for the end of training; None where
        `step` has returned all of it.
        """
        return None

    def due(self, iteration: int) -> bool:
        """Whether a rewire follows the iteration that is the so-many-th to finish."""
        return self.schedule.due(iteration)

    def rewire(self) -> RewireReport:
        """Rewires now.

        Raises ValueError naming the layer for NaN or infinite weights and for anything that cannot
        be moved (foreign optimizer state, tensors on several devices, averages with another
        pattern); NotImplementedError on a GPU, where this build has no CUDA kernels.
        """
        start = time.perf_counter()
        layers = self._live_layers()
        if self._optimizer is not None:
            check_optimizer(self._optimizer, layers)  # layers may have been thawed since
        for layer in layers:
            layer.check(self._optimizer)
        plan = open_plan(layers, self._judged(layers))
        threshold, next_threshold = self._prune(plan, layers)
        ranks = self._grow(plan, layers) or [None] * len(layers)
        self._check_balance(plan, layers)
        moves = [
            Move(layer, after, self._optimizer, self._entry_state(layer))
            if pruned or grown
            else None
            for layer, pruned, grown, after in zip(
                layers, plan.pruned, plan.grown, plan.nnz_after, strict=True
            )
        ]
        outputs = [
            move.output(chosen) if move else Move.NOTHING
            for move, chosen in zip(moves, ranks, strict=True)
        ]
        plan.apply(self.seed, self.rewires, outputs)
        report = self._report(plan, layers, threshold, next_threshold)
        commit([move for move in moves if move])
        self.threshold = next_threshold
        self.rewires += 1
        self._rewired(layers)
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
            if copy.weight_values is layer.weight_values:
                raise ValueError("follow: expected a copy of the model, got the model itself")
        for layer, copy in zip(self._layers, copies, strict=True):
            layer.followers += [(copy.name, copy.module), *copy.sharers]

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings and, of some methods, tensors: what a resumed run needs beside model and
        optimizer.
        """
        return {
            "version": STATE_VERSION,
            "method": type(self).__name__,
            "iteration": self.iteration,
            "rewires": self.rewires,
            "seed": self.seed,
            **self._policy_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken, once model and optimizer have been loaded. The
        schedule stays the one given at construction.

        Raises ValueError for a state of another version, method or mode, or with other keys.
        """
        own = self.state_dict()
        for key in ("version", "method"):  # before the keys, which follow from both
            if state.get(key) != own[key]:
                raise ValueError(f"state_dict: expected {key} {own[key]!r}, got {state.get(key)!r}")
        if set(state) != set(own):
            raise ValueError(f"state_dict: expected keys {sorted(own)}, got {sorted(state)}")
        numbers = {key: as_int(state[key], key, 0) for key in ("iteration", "rewires", "seed")}
        self._load_policy_state(state)
        self.iteration = numbers["iteration"]
        self.rewires = numbers["rewires"]
        self.seed = numbers["seed"]
        self._iteration_done()

    # ---- what a method decides ----------------------------------------------------------------

    def _judged(self, layers: list[SparseLayer]) -> list[Tensor]:
        """Of each layer one number per entry (or block): the smaller its magnitude, the sooner it
        goes.
        """
        return [layer.magnitudes() for layer in layers]

    def _prune(self, plan: Any, layers: list[SparseLayer]) -> tuple[float, float]:
        """Prunes in `plan`; returns the threshold used and the next one. Must not change `self`."""
        raise NotImplementedError(f"{type(self).__name__} does not prune")

    def _grow(self, plan: Any, layers: list[SparseLayer]) -> Ranks | None:
        """Gives entries back; returns which free positions grow, None for random ones."""
        plan.grow_proportionally()
        return None

    def _wanted(self, layers: list[SparseLayer]) -> int:
        """How many non-zeros there must be after a rewire: as many as before."""
        return sum(layer.weight_values.numel() for layer in layers)

    def _entry_state(self, layer: SparseLayer) -> list[tuple[dict[str, Any], str]]:
        """Tensors with a number per entry that move with the survivors: (where held, key)."""
        return []

    def _rewired(self, layers: list[SparseLayer]) -> None:
        """After a rewire has been made."""

    def _iteration_done(self) -> None:
        """Between iterations, also after a state has been loaded."""

    def _policy_state(self) -> dict[str, Any]:
        """The method's part of `state_dict`."""
        return {}

    def _load_policy_state(self, state: dict[str, Any]) -> None:
        """Takes back what `_policy_state` gave; raises before changing anything."""

    # ---- details ------------------------------------------------------------------------------

    def _live_layers(self) -> list[SparseLayer]:
        """Frozen layers do not train, so they neither give nor take."""
        return [layer for layer in self._layers if layer.weight_values.requires_grad]

    def _check_trains(self) -> None:
        """Raises ValueError without an optimizer or anything to train; Static needs neither."""
        if self._optimizer is None:
            raise ValueError("optimizer: expected the optimizer of the model's values, got None")
        if self.nnz == 0:
            raise ValueError("model: expected a trainable sparse module, all of them are frozen")

    def _check_balance(self, plan: Any, layers: list[SparseLayer]) -> None:
        after = sum(n * layer.block for n, layer in zip(plan.nnz_after, layers, strict=True))
        wanted = self._wanted(layers)
        if after != wanted:
            raise RuntimeError(
                f"rewire: {after} non-zeros would be left, expected {wanted}; nothing was rewired, "
                "please report this"
            )

    def _report(
        self, plan: Any, layers: list[SparseLayer], threshold: float, next_threshold: float
    ) -> RewireReport:
        rows = [
            LayerReport(layer.name, layer.weight_values.numel(), *(layer.block * n for n in counts))
            for layer, *counts in zip(layers, plan.pruned, plan.grown, plan.nnz_after, strict=True)
        ]
        return RewireReport(
            step=self.iteration,
            threshold=threshold,
            next_threshold=next_threshold,
            pruned=sum(row.pruned for row in rows),
            grown=sum(row.grown for row in rows),
            layers=rows,
            seconds=0.0,
        )
