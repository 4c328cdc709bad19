"""Dynamic sparse reparameterization (Mostafa & Wang, ICML 2019, arXiv 1902.05967)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from dsr_kernels.choices import check_choice
from dsr_kernels.rewiring.allocation import ALLOCATIONS, MAX_POWER, growth_weights, share_in_blocks
from dsr_kernels.rewiring.blocks import prune_weights, use_kernels
from dsr_kernels.rewiring.layers import SparseLayer
from dsr_kernels.rewiring.optimizers import OneOrMore
from dsr_kernels.rewiring.plan import RewirePlan
from dsr_kernels.rewiring.recipe_keys import (
    BLOCK_SCORE,
    EVERY,
    STOP_EPOCH,
    Arguments,
    Key,
    MethodRecipe,
    PruneTarget,
)
from dsr_kernels.rewiring.rewirer import Rewirer, State
from dsr_kernels.rewiring.schedule import as_int, as_number

DEFAULT_FRACTION = 0.1
THRESHOLDS = ("adaptive", "exact")


class DSR(Rewirer):
    """Prunes the smallest weights of the whole network and regrows as many where weights survive.

    One rewire: prune every |w| < H over all layers; give each layer back a share of what was
    pruned in proportion to its survivors; grow at uniformly random positions that were zero
    before; start grown weights at 0, and their optimizer state where a fresh optimizer's starts.
    Layers therefore trade non-zeros. The total is conserved exactly, and a layer always keeps its
    largest weight.

    Args:
        model: holds the sparse modules. Frozen ones (`weight_values.requires_grad`
            False) are left alone.
        optimizer: holds their values; its state (momentum, moments) moves with the survivors. A
            list of several, too, see `Rewirer`.
        prune_fraction: N_p as a share of the non-zeros, in (0, 1); 0.1 if neither is given.
        prune_count: N_p, how many weights a rewire should prune.
        threshold: "adaptive" prunes below H and then doubles (halves) H for the next rewire if
            fewer than (1 - tolerance) N_p (more than (1 + tolerance) N_p) were below it, as in the
            paper. "exact" prunes exactly the N_p smallest, found by selection over all layers.
            None: "adaptive", but "exact" where layers are in blocks, whose mean magnitudes lie so
            close together that doubling H takes it from none of them to a third.
        initial_threshold: H of the first rewire ("adaptive"). From 0.001 it takes the first three
            or four rewires, which move less than N_p, to come up to the weights' magnitudes; a
            larger one takes fewer, "exact" none.
        tolerance: see `threshold`.
        allocation: what a layer's share of the growth is in proportion to: "R", its survivors, as
            in the paper; for comparison "M" and "N", its non-zeros and its positions, "K", what it
            has lost, and "anti", 1 / R.
        power: with "R", the survivors are raised to it; from -8 to 8.
        granularity: "weight", or "kernel": a convolution's k x k weights of one input and one
            output channel are pruned and grown together. Their score is their mean magnitude. N_p
            and the budget still count weights: at most N_p are pruned, in whole kernels. A
            remainder that no kernel can hold, where kernels differ in size, is carried over to the
            next rewire.
        every, schedule, total, stop, block_score, seed: see `Rewirer`.

    Raises ValueError for arguments out of range, a model without trainable sparse modules, and an
    optimizer that does not hold their values.
    """

    RECIPE: ClassVar[tuple[Key, ...]] = (
        EVERY,
        BLOCK_SCORE,
        STOP_EPOCH,
        Key("prune_count", int, 0, low=0, unset=True),  # N_p; 0: prune_fraction says
        Key("prune_fraction", float, 0.0, low=0.0, below=1.0, unset=True),
        Key("threshold", str, "", choices=("", *THRESHOLDS), unset=True),  # "": see the argument
        Key("initial_threshold", float, 1e-3, low=0.0),
        Key("tolerance", float, 0.1, low=0.0, below=1.0),
        Key("allocation", str, "R", choices=ALLOCATIONS),
        Key("power", float, 1.0),
    )
    WHOLE_KERNELS = True
    GLOBAL_THRESHOLD = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: OneOrMore,
        *,
        prune_fraction: float | None = None,
        prune_count: int | None = None,
        threshold: str | None = None,
        initial_threshold: float = 1e-3,
        tolerance: float = 0.1,
        allocation: str = "R",
        power: float = 1.0,
        granularity: str = "weight",
        every: int | None = None,
        schedule: Sequence[tuple[int, int]] | None = None,
        total: int | None = None,
        stop: int | None = None,
        block_score: str = "mean",
        seed: int = 0,
    ) -> None:
        super().__init__(
            model,
            optimizer,
            every=every,
            schedule=schedule,
            total=total,
            stop=stop,
            block_score=block_score,
            seed=seed,
        )
        self._check_trains()
        if threshold is None:
            threshold = _usual_threshold(max(layer.block for layer in self._layers))
        check_choice(threshold, "threshold", THRESHOLDS)
        check_choice(allocation, "allocation", ALLOCATIONS)
        check_choice(granularity, "granularity", ("weight", "kernel"))
        self.power = as_number(power, "power", -MAX_POWER, MAX_POWER, "[]")
        if allocation != "R" and self.power != 1:
            raise ValueError(f"power: expected 1 unless allocation is 'R', got {power!r}")
        initial_threshold = as_number(initial_threshold, "initial_threshold", 0, ends="()")
        self.tolerance = as_number(tolerance, "tolerance", 0, 1)
        self.mode, self.allocation = threshold, allocation
        self.threshold = initial_threshold if threshold == "adaptive" else 0.0
        # Weights of the budget that no whole kernel could hold: so far, and after this rewire.
        self.carried_over = self._left_over = 0
        if granularity == "kernel":
            use_kernels(self._layers)
        self.prune_count = _target(prune_fraction, prune_count, self.nnz)

    # ---- recipes ------------------------------------------------------------------------------

    @classmethod
    def recipe_arguments(cls, recipe: MethodRecipe, epoch_length: int) -> Arguments:
        own = {"granularity": recipe.granularity}
        return super().recipe_arguments(recipe, epoch_length) | own

    @classmethod
    def check_recipe(cls, recipe: MethodRecipe) -> None:
        count, fraction = recipe.rewiring["prune_count"], recipe.rewiring["prune_fraction"]
        if count > 0 and fraction > 0:
            raise ValueError(
                "set one of rewiring.prune_count and rewiring.prune_fraction and leave the other "
                f"at 0, got {count} and {fraction}"
            )

    @classmethod
    def resolved(cls, recipe: MethodRecipe) -> dict[str, Any]:
        given, found = recipe.rewiring, {}
        if not given["prune_count"]:
            found["prune_fraction"] = given["prune_fraction"] or DEFAULT_FRACTION
        if recipe.block_size == 1:  # else it depends on the layers
            found["threshold"] = given["threshold"] or _usual_threshold(1)
        return found

    @classmethod
    def prune_target(cls, recipe: MethodRecipe) -> PruneTarget | None:
        settings = recipe.rewiring
        threshold = settings["threshold"] or _usual_threshold(recipe.block_size)
        adaptive = threshold == "adaptive"
        target = PruneTarget(settings["prune_count"], settings["tolerance"] if adaptive else None)
        return target if target.count else None

    # ---- the engine's hooks -------------------------------------------------------------------

    def _prune(self, plan: RewirePlan, layers: list[SparseLayer]) -> tuple[float, float]:
        if self.mode == "exact":
            count = min(self.prune_count, self._growable(plan, layers))
            largest = prune_weights(plan, layers, count)
            return largest, largest
        plan.prune_below(self.threshold)
        below_each, growable = plan.below_each, self._growable(plan, layers)
        if _weights(plan.pruned, layers) > growable:
            prune_weights(plan, layers, growable)
        below = _weights(below_each, layers)
        prunable = sum(max(layer.weight_values.numel() - layer.block, 0) for layer in layers)
        return self.threshold, self._adapted(below, prunable)

    def _grow(self, plan: RewirePlan, layers: list[SparseLayer]) -> None:
        if self._in_paper_form(layers):
            plan.grow_proportionally()
            self._left_over = self.carried_over
            return
        blocks = [layer.block for layer in layers]
        nnz, pruned, capacity = (
            [n * block for n, block in zip(numbers, blocks, strict=True)]
            for numbers in (plan.nnz, plan.pruned, plan.capacity)
        )
        survivors = [m - k for m, k in zip(nnz, pruned, strict=True)]
        sizes = [layer.module.numel for layer in layers]
        weights = growth_weights(self.allocation, self.power, nnz, pruned, sizes)
        total = sum(pruned) + self.carried_over
        grown = share_in_blocks(total, weights, survivors, capacity, blocks)
        plan.grow([g // block for g, block in zip(grown, blocks, strict=True)])
        self._left_over = total - sum(grown)

    def _growable(self, plan: RewirePlan, layers: list[SparseLayer]) -> int:
        """How many weights may be pruned: capacity is for them and for those carried over."""
        return max(0, _weights(plan.capacity, layers) - self.carried_over)

    def _in_paper_form(self, layers: list[SparseLayer]) -> bool:
        single = all(layer.block == 1 for layer in layers)
        return single and self.allocation == "R" and self.power == 1

    def _wanted(self, layers: list[SparseLayer]) -> int:
        return super()._wanted(layers) + self.carried_over - self._left_over

    def _rewired(self, layers: list[SparseLayer]) -> None:
        self.carried_over = self._left_over

    def _adapted(self, below: int, prunable: int) -> float:
        """H of the next rewire, where `below` of `prunable` weights were below the present one.

        Beyond the paper: H does not rise once every weight is below it, and never underflows to 0.
        Otherwise a target out of reach could drive it so far that no later rewire brings it back.
        """
        if below < (1 - self.tolerance) * self.prune_count:
            return 2 * self.threshold if below < prunable else self.threshold
        if below > (1 + self.tolerance) * self.prune_count:
            return max(self.threshold / 2, sys.float_info.min)
        return self.threshold

    def _policy_state(self) -> State:
        return {
            "mode": self.mode,
            "threshold": self.threshold,
            "prune_count": self.prune_count,
            "carried_over": self.carried_over,
        }

    def _load_policy_state(self, state: State) -> None:
        if state["mode"] != self.mode:
            raise ValueError(
                f"state_dict: expected a state of threshold={self.mode!r}, got {state['mode']!r}"
            )
        ends = "()" if self.mode == "adaptive" else "[)"
        threshold = as_number(state["threshold"], "threshold", 0, ends=ends)
        prune_count = as_int(state["prune_count"], "prune_count", 1)
        self.carried_over = self._left_over = as_int(state["carried_over"], "carried_over", 0)
        self.prune_count = prune_count
        self.threshold = threshold


def _usual_threshold(block_size: int) -> str:
    return "adaptive" if block_size == 1 else "exact"


def _weights(blocks: Sequence[int], layers: list[SparseLayer]) -> int:
    """The number of weights in blocks[l] blocks of each layer l."""
    return sum(n * layer.block for n, layer in zip(blocks, layers, strict=True))


def _target(fraction: float | None, count: int | None, nnz: int) -> int:
    """N_p, from a fraction of the non-zeros or a count."""
    if fraction is not None and count is not None:
        raise ValueError(
            f"prune_fraction, prune_count: expected at most one of them, got {fraction!r} and "
            f"{count!r}"
        )
    if count is not None:
        count = as_int(count, "prune_count", 1)
        if count > nnz:
            raise ValueError(
                f"prune_count: expected at most the model's {nnz} non-zeros, got {count}"
            )
        return count
    fraction = DEFAULT_FRACTION if fraction is None else fraction
    return max(1, round(as_number(fraction, "prune_fraction", 0, 1, "()") * nnz))
