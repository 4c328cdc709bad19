"""The engine below every rewiring method: when to rewire, and how to move all tensors or none."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.choices import check_choice
from dsr_kernels.nn.changing import changing
from dsr_kernels.rewiring.attach import Attachable
from dsr_kernels.rewiring.followers import add_followers
from dsr_kernels.rewiring.layers import BLOCK_SCORES, Slot, SparseLayer, find_layers
from dsr_kernels.rewiring.move import Move, commit
from dsr_kernels.rewiring.optimizers import OneOrMore, Optimizers
from dsr_kernels.rewiring.plan import RewirePlan, open_plan
from dsr_kernels.rewiring.processes import processes_of
from dsr_kernels.rewiring.recipe_keys import FromRecipe
from dsr_kernels.rewiring.report import RewireReport, make_report
from dsr_kernels.rewiring.schedule import Schedule, as_int
from dsr_kernels.rewiring.together import Together

STATE_VERSION = 3
State = dict[str, Any]  # of a rewirer, as in a checkpoint
# Of each layer [grown] int64, ascending: which of its free positions grow; None: random ones.
Ranks = list[Tensor | None]


class Rewirer(Attachable, Together, FromRecipe):
    """Base of the methods. A method decides what is pruned (`_prune`) and what grows (`_grow`).

    Args:
        model: holds the sparse modules.
        optimizer: holds their values; its state moves with the survivors. Or a list of optimizers
            of which one holds each layer's values. Optimizers around others, such as SAM, and
            objects that hold some are looked through (docs/optimizers.md).
        every: iterations from one rewire to the next (default 100).
        schedule: instead of `every`, [(start_iteration, every), ...].
        total: iterations of the whole training. Rewires end after three quarters of them, so that
            what has grown is trained. Without `total` and `stop` they go on: then many weights are
            exactly 0 when training ends, just grown and never trained.
        stop: instead, no rewire follows an iteration from this one on (0-based).
        block_score: by what weights are judged that are pruned together, blocks of output channels
            or whole kernels: "mean", of their magnitudes, or "l2", the root of their mean square.
        seed: of the grown positions. With the same seed the same weights are rewired in the same
            way, bit for bit, on any number of threads and on any device (DeepR: on any device of
            the same kind).

    A rewire that raises has changed nothing. Under dsr_kernels.distributed.DistributedDataParallel
    all processes compare what decides a rewire first. The first `step` compares the settings.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OneOrMore | None,
        *,
        every: int | None = None,
        schedule: Sequence[tuple[int, int]] | None = None,
        total: int | None = None,
        stop: int | None = None,
        block_score: str = "mean",
        seed: int = 0,
    ) -> None:
        self._layers = find_layers(model)
        for layer in self._layers:
            layer.check_whole()
        check_choice(block_score, "block_score", BLOCK_SCORES)
        for layer in self._layers:
            layer.block_score = block_score
        self._optimizers = Optimizers(optimizer, self._layers)
        self.schedule = Schedule.make(every, schedule, stop, total)
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
        """Counts a finished iteration (call it after `optimizer.step()`, unless the rewirer is
        attached); rewires if one is due.
        """
        self._check_caller()
        if not self._compared:
            self._compare_settings()
        self.iteration += 1
        try:
            report = self.rewire() if self.due(self.iteration) else None
        except BaseException:
            self.iteration -= 1
            raise
        self._iteration_done()
        return report

    def take_report(self) -> RewireReport | None:
        """What `step` has not reported yet, for the end of training; None: it has reported all."""
        return None

    def due(self, iteration: int) -> bool:
        """Whether to rewire after this many iterations."""
        return self.schedule.due(iteration)

    @torch.inference_mode(False)  # what it makes is trained on
    def rewire(self) -> RewireReport:
        """Rewires now.

        Raises RuntimeError where another thread rewires or loads the model at that moment, and
        ValueError, naming the layer, for NaN or infinite weights and for tensors that cannot
        be moved: optimizer state of another shape, tensors on several devices, averages with
        another pattern. Raises RuntimeError where something else than the layer has written to its
        index tensors, or holds the accumulator of a gradient whose length would change, or where
        processes that train together differ, and NotImplementedError on a GPU where this build has
        no CUDA kernels.
        """
        with changing([module for layer in self._layers for module in layer.modules]):
            return self._rewire()

    def _rewire(self) -> RewireReport:
        start = time.perf_counter()
        layers = self._live_layers()
        states = self._agree(layers)
        plan = open_plan(layers, self._scores(layers))
        threshold, next_threshold = self._prune(plan, layers)
        ranks = self._grow(plan, layers) or [None] * len(layers)
        self._check_balance(plan, layers)
        self._check_held(plan, layers)
        moves = [
            Move(layer, after, state, self._entry_state(layer)) if pruned or grown else None
            for layer, state, pruned, grown, after in zip(
                layers, states, plan.pruned, plan.grown, plan.nnz_after, strict=True
            )
        ]
        outputs = [
            move.output(chosen) if move else Move.NOTHING
            for move, chosen in zip(moves, ranks, strict=True)
        ]
        plan.apply(self.seed, self.rewires, outputs)
        report = make_report(self.iteration, plan, layers, threshold, next_threshold)
        self._commit([move for move in moves if move])
        self._optimizers.rewired(layers)
        self.threshold = next_threshold
        self.rewires += 1
        self._rewired(layers)
        return dataclasses.replace(report, seconds=time.perf_counter() - start)

    def follow(self, model: nn.Module) -> None:
        """Lets a copy of the model, such as an average of its weights, follow every rewire.

        Averages of survivors move with them, those of grown weights start at 0. `model` is a deep
        copy of the model or a `torch.optim.swa_utils.AveragedModel` of it, with the same patterns,
        on the same device. Either may be wrapped (DistributedDataParallel, torch.compile) or held
        by another module, as in a LightningModule. The average must be one of parameters: one of
        buffers rounds the indices, and the next rewire refuses it.

        Raises ValueError that names the layer for anything else, and changes nothing then: missing
        or further layers, another pattern, the model itself, values that are the model's, a copy
        that follows already.
        """
        add_followers(self._layers, model)

    def state_dict(self) -> State:
        """What a resumed run needs beside model and optimizer: numbers, strings and, of some
        methods, tensors.
        """
        return {
            "version": STATE_VERSION,
            "method": type(self).__name__,
            "iteration": self.iteration,
            "rewires": self.rewires,
            "seed": self.seed,
            **self._policy_state(),
        }

    def load_state_dict(self, state: State) -> None:
        """Continues where `state_dict` was taken. Load model and optimizer first. The schedule
        stays the one given at construction.

        Raises ValueError for a state of another version or method, with other keys, or that the
        method refuses.
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
        self._compared = False
        self._iteration_done()

    # ---- what a method decides ----------------------------------------------------------------

    def _scores(self, layers: list[SparseLayer]) -> list[Tensor]:
        """Of each layer one finite number per entry or block, float32 or float64 [entries]: those
        of smallest magnitude are pruned first.
        """
        return [layer.magnitudes() for layer in layers]

    def _prune(self, plan: RewirePlan, layers: list[SparseLayer]) -> tuple[float, float]:
        """Prunes in `plan`; returns the threshold used and the next one, for the report. Must not
        change what `state_dict` holds: the rewire may yet fail.
        """
        raise NotImplementedError(f"{type(self).__name__} does not prune")

    def _grow(self, plan: RewirePlan, layers: list[SparseLayer]) -> Ranks | None:
        """Grows in `plan`; returns which free positions grow, None for random ones."""
        plan.grow_proportionally()
        return None

    def _wanted(self, layers: list[SparseLayer]) -> int:
        """How many weights there must be after the rewire: by default, as many as before."""
        return sum(layer.weight_values.numel() for layer in layers)

    def _entry_state(self, layer: SparseLayer) -> list[Slot]:
        """Where more tensors [blocks, ...] are held that move with the survivors."""
        return []

    def _commit(self, moves: list[Move]) -> None:
        """Makes all moves, or none and raises."""
        commit(moves)

    def _rewired(self, layers: list[SparseLayer]) -> None:
        """Called after a rewire has been made."""

    def _iteration_done(self) -> None:
        """Called between iterations, also after a state has been loaded."""

    def _policy_state(self) -> State:
        """The method's part of `state_dict`."""
        return {}

    def _load_policy_state(self, state: State) -> None:
        """Takes what `_policy_state` gave; raises before it changes anything."""

    # ---- details ------------------------------------------------------------------------------

    def _live_layers(self) -> list[SparseLayer]:
        """The layers that train: frozen ones neither lose nor gain entries."""
        return [layer for layer in self._layers if layer.weight_values.requires_grad]

    def _check_trains(self) -> None:
        """Raises ValueError without an optimizer, for a model of which nothing trains, and for one
        in torch's own DistributedDataParallel.
        """
        processes_of(self._layers)
        if not self._optimizers.given:
            raise ValueError("optimizer: expected the optimizer of the model's values, got None")
        if self.nnz == 0:
            raise ValueError("model: expected a trainable sparse module, all of them are frozen")

    def _check_balance(self, plan: RewirePlan, layers: list[SparseLayer]) -> None:
        after = sum(n * layer.block for n, layer in zip(plan.nnz_after, layers, strict=True))
        wanted = self._wanted(layers)
        if after != wanted:
            raise RuntimeError(
                f"rewire: {after} non-zeros would be left, expected {wanted}; nothing was rewired, "
                "please report this"
            )
