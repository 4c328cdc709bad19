"""What SET, RigL and SNFS share: each layer loses a fraction of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from dsr_kernels.choices import check_choice
from dsr_kernels.rewiring.gradient_growth import GradientWatch, Share
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
)
from dsr_kernels.rewiring.rewirer import Ranks, Rewirer
from dsr_kernels.rewiring.schedule import KINDS, Anneal, as_int, as_number

GROWTHS = ("random", "gradient")
DEFAULT_FRACTION = 0.3


class LayerwiseRewirer(Rewirer):
    """Prunes the smallest round(fraction * nnz) weights of each layer and grows as many; of blocks
    round(fraction * blocks).

    Args:
        model: holds the sparse modules. Frozen ones (`weight_values.requires_grad`
            False) are left alone.
        optimizer: holds their values; its state (momentum, moments) moves with the survivors. A
            list of several, too, see `Rewirer`.
        fraction: of each layer's non-zeros that is pruned, in (0, 1), at the start of training.
        fraction_schedule: "constant", or "cosine", "cubic", "exponential": how the fraction falls
            to `final_fraction`, see `schedule.Anneal`. Default: the method's own.
        final_fraction: the fraction after `length` iterations.
        length: iterations over which the fraction falls; default: `stop`, or what `total` makes it.
        growth: "random", uniformly; or "gradient": where the loss gradient of this iteration's last
            backward pass is largest in magnitude. Default: the method's own. The gradient is
            computed in the backward pass before a rewire, for a block of rows at a time, of which
            only the best positions are kept: a dense gradient never exists. It needs a backward
            pass in eager mode (gradient checkpointing: with `use_reentrant=False`). Where a weight
            is used several times, the sum of its gradients decides.
        every, schedule, total, stop, block_score, seed: see `Rewirer`.

    What was pruned does not grow again in the same rewire. A layer keeps its largest weight, and
    loses no more weights than it has capacity to grow. With gradient growth, a layer whose gradient
    was not seen or is not finite (an overflow under float16) is left alone.

    Raises ValueError for arguments out of range, a model without trainable sparse modules, and an
    optimizer that does not hold their values.
    """

    RECIPE: ClassVar[tuple[Key, ...]] = (
        EVERY,
        BLOCK_SCORE,
        STOP_EPOCH,  # the end of the fraction's schedule, too; 0: the end of training
        Key("fraction", float, 0.0, low=0.0, below=1.0, unset=True),  # 0: the constructor's
        Key("fraction_schedule", str, "", choices=("", *KINDS), unset=True),  # "": the method's own
        Key("final_fraction", float, 0.0, low=0.0, below=1.0),
        Key("growth", str, "", choices=("", *GROWTHS), unset=True),  # "": the method's own
    )
    FRACTION_SCHEDULE: ClassVar[str] = "constant"
    GROWTH: ClassVar[str] = "random"

    def __init__(
        self,
        model: nn.Module,
        optimizer: OneOrMore,
        *,
        fraction: float = DEFAULT_FRACTION,
        fraction_schedule: str | None = None,
        final_fraction: float = 0.0,
        length: int | None = None,
        growth: str | None = None,
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
        fraction_schedule = fraction_schedule or self.FRACTION_SCHEDULE
        growth = growth or self.GROWTH
        fraction = as_number(fraction, "fraction", 0, 1, "()")
        final_fraction = as_number(final_fraction, "final_fraction", 0, fraction, "[]")
        length = self.schedule.stop if length is None else as_int(length, "length", 1)
        if length is None and fraction_schedule != "constant":
            raise ValueError(
                f"length: expected the iterations over which a {fraction_schedule!r} fraction "
                "falls, or `stop`, or `total`, got none of them"
            )
        check_choice(fraction_schedule, "fraction_schedule", KINDS)
        if fraction_schedule == "exponential" and final_fraction == 0:
            raise ValueError(
                "final_fraction: expected a number above 0, for the fraction falls exponentially, "
                f"got {final_fraction!r}"
            )
        check_choice(growth, "growth", GROWTHS)
        self.fraction = Anneal(fraction_schedule, fraction, final_fraction, 0, length or 1)
        self.growth = growth
        self._watch = GradientWatch(self._decide_ahead) if growth == "gradient" else None
        self._iteration_done()

    @classmethod
    def recipe_arguments(cls, recipe: MethodRecipe, epoch_length: int) -> Arguments:
        arguments = super().recipe_arguments(recipe, epoch_length)
        return arguments | {"length": arguments.get("stop", recipe.epochs * epoch_length)}

    @classmethod
    def resolved(cls, recipe: MethodRecipe) -> dict[str, Any]:
        given = recipe.rewiring
        return {
            "fraction": given["fraction"] or DEFAULT_FRACTION,
            "fraction_schedule": given["fraction_schedule"] or cls.FRACTION_SCHEDULE,
            "growth": given["growth"] or cls.GROWTH,
        }

    # ---- what a method decides ----------------------------------------------------------------

    def _grown_counts(self, layers: list[SparseLayer], pruned: list[int]) -> list[int]:
        """How many entries each layer gains: here, as many as it loses."""
        return pruned

    # ---- the engine's hooks -------------------------------------------------------------------

    def _prune(self, plan: RewirePlan, layers: list[SparseLayer]) -> tuple[float, float]:
        if self._watch is None:
            pruned = self._pruned_counts(layers, self.iteration)
            self._growing = self._grown_counts(layers, pruned)
        else:
            pruned, self._growing = self._watch.balanced(layers)
        plan.prune_smallest_each(pruned)
        return plan.threshold, plan.threshold

    def _grow(self, plan: RewirePlan, layers: list[SparseLayer]) -> Ranks | None:
        plan.grow(self._growing)
        return None if self._watch is None else self._watch.ranks(layers, self._growing)

    def _rewired(self, layers: list[SparseLayer]) -> None:
        if self._watch is not None:
            self._watch.forget()

    def _iteration_done(self) -> None:
        if self._watch is None:
            return
        self._watch.stop()
        if self.due(self.iteration + 1):
            self._watch.start(self._layers)

    # ---- details ------------------------------------------------------------------------------

    def _pruned_counts(self, layers: list[SparseLayer], iteration: int) -> list[int]:
        fraction = self.fraction.at(iteration)
        counts = []
        for layer in layers:
            count = min(round(fraction * layer.entries), max(layer.entries - 1, 0))
            counts.append(min(count, layer.free_entries))
        return counts

    def _decide_ahead(self) -> dict[int, Share]:
        """What each layer will lose and gain in the rewire after this backward pass."""
        layers = self._live_layers()
        pruned = self._pruned_counts(layers, self.iteration + 1)
        grown = self._grown_counts(layers, pruned)
        return {
            layer.index: Share(*counts)
            for layer, *counts in zip(layers, pruned, grown, strict=True)
        }
