"""Gradual magnitude pruning (Zhu & Gupta, arXiv 1710.01878): non-zeros become fewer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from dsr_kernels.choices import check_choice
from dsr_kernels.distribution import budget, exact_fraction
from dsr_kernels.rewiring.layers import SparseLayer
from dsr_kernels.rewiring.names import under_names
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
from dsr_kernels.rewiring.rewirer import Rewirer, State
from dsr_kernels.rewiring.schedule import Anneal, as_int, three_quarters

SCOPES = ("layer", "global")
DENSITY_SCHEDULES = ("cubic", "exponential")


class GMP(Rewirer):
    """Prunes the smallest weights step by step until the final sparsity is reached; nothing grows.

    The model starts with more non-zeros, usually all of them (`sparsify(model, sparsity=0.0)`). It
    may be fresh or trained; from a trained network this is the "compressed sparse" baseline of
    DSR's paper. Between `begin` and `end` the density follows `density_schedule`, from what it is
    at construction. "cubic" is the published schedule; "exponential" prunes the same share each
    time.

    Args:
        model: holds the sparse modules. Frozen ones (`weight_values.requires_grad`
            False) are left alone.
        optimizer: holds their values; its state (momentum, moments) moves with the survivors. A
            list of several, too, see `Rewirer`.
        final_sparsity: at `end`, each layer has floor((1 - final_sparsity) N_l) non-zeros, at
            least 1; with scope "global", the layers together have the sum of these.
        scope: "layer": all layers have the same density, if they began with the same. "global": one
            threshold for all layers; each keeps its largest weight.
        density_schedule: "cubic" or "exponential", see `schedule.Anneal`.
        begin, end: iterations.
        total: instead of `end`, iterations of the whole training, of which pruning ends after three
            quarters.
        every, schedule: when to prune, see `Rewirer`; after iteration `end` in any case.

    Raises ValueError for arguments out of range, a model without trainable sparse modules or with
    fewer non-zeros than at the end, and an optimizer that does not hold their values.
    """

    RECIPE: ClassVar[tuple[Key, ...]] = (
        EVERY,
        BLOCK_SCORE,
        STOP_EPOCH,  # the end of pruning; 0: the end of training
        Key("initial_sparsity", float, 0.0, argument=None, low=0.0, below=1.0),  # of the model
        Key("begin_epoch", float, 0.0, "begin", low=0.0, epochs=True),
        Key("density_schedule", str, "cubic", choices=DENSITY_SCHEDULES),
        Key("scope", str, "layer", choices=SCOPES),
    )
    SHRINKS = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: OneOrMore,
        *,
        final_sparsity: float,
        end: int | None = None,
        total: int | None = None,
        begin: int = 0,
        scope: str = "layer",
        density_schedule: str = "cubic",
        every: int | None = None,
        schedule: Sequence[tuple[int, int]] | None = None,
        block_score: str = "mean",
        seed: int = 0,
    ) -> None:
        if (at := three_quarters(total) if end is None else end) is None:
            raise ValueError("end: expected the iteration at which pruning ends, or `total`")
        end = as_int(at, "end", 1)
        super().__init__(
            model,
            optimizer,
            every=every,
            schedule=schedule,
            stop=end,
            block_score=block_score,
            seed=seed,
        )
        self._check_trains()
        self.begin, self.end = as_int(begin, "begin", 0), end
        if self.begin >= self.end:
            raise ValueError(f"begin: expected less than end = {end}, got {begin}")
        check_choice(scope, "scope", SCOPES)
        check_choice(density_schedule, "density_schedule", DENSITY_SCHEDULES)
        exact_fraction(final_sparsity, "final_sparsity")
        self.final_sparsity, self.scope, self.kind = final_sparsity, scope, density_schedule
        self.initial = {layer.name: layer.weight_values.numel() for layer in self._layers}
        sizes = {layer.block for layer in self._layers}
        if scope == "global" and len(sizes) > 1:
            raise ValueError(
                f"scope: 'global' prunes over layers of one block size, these have "
                f"{sorted(sizes)}; use scope='layer', or leave the layers dense that stand apart"
            )
        for layer in self._layers:
            last = self._final(layer)
            if scope == "layer" and self.initial[layer.name] < last:
                raise ValueError(
                    f"layer {layer.name!r}: expected at least the {last} non-zeros that "
                    f"final_sparsity {final_sparsity} leaves, got {self.initial[layer.name]}"
                )
        if self.nnz < sum(self._final(layer) for layer in self._live_layers()):
            raise ValueError(
                f"final_sparsity: {final_sparsity} leaves more than the {self.nnz} non-zeros there "
                "are"
            )

    def due(self, iteration: int) -> bool:
        return iteration == self.end or (iteration > self.begin and super().due(iteration))

    def scheduled(self, layers: list[SparseLayer], iteration: int) -> int:
        """How many non-zeros the layers together should have after `iteration`; at most as many as
        now. With scope "layer" each layer follows the schedule, with "global" their sum does.
        """
        first = sum(self.initial[layer.name] for layer in layers)
        last = sum(self._final(layer) for layer in layers)
        now = sum(layer.weight_values.numel() for layer in layers)
        if first <= last:  # there is nothing to prune
            return now
        numbers = Anneal(self.kind, first, last, self.begin, self.end - self.begin)
        wanted = round(numbers.at(iteration))
        wanted -= wanted % max(layer.block for layer in layers)  # whole blocks of any
        return min(now, max(last, wanted))

    def _final(self, layer: SparseLayer) -> int:
        return budget(layer.module.numel, self.final_sparsity, layer.block)

    # ---- recipes ------------------------------------------------------------------------------

    @classmethod
    def recipe_arguments(cls, recipe: MethodRecipe, epoch_length: int) -> Arguments:
        arguments = super().recipe_arguments(recipe, epoch_length)
        arguments["end"] = arguments.pop("stop", recipe.epochs * epoch_length)
        return arguments | {"final_sparsity": recipe.sparsity}

    @classmethod
    def check_recipe(cls, recipe: MethodRecipe) -> None:
        settings, epochs = recipe.rewiring, recipe.epochs
        if settings["stop_epoch"] > epochs:
            raise ValueError(
                f"rewiring.stop_epoch: expected at most training.epochs = {epochs}, for method gmp "
                f"has model.sparsity only then, got {settings['stop_epoch']:g}"
            )
        end = settings["stop_epoch"] or epochs
        if settings["begin_epoch"] >= end:
            raise ValueError(
                f"rewiring.begin_epoch: expected less than the end of pruning, epoch {end:g}, got "
                f"{settings['begin_epoch']:g}"
            )
        if settings["initial_sparsity"] > recipe.sparsity:
            raise ValueError(
                f"rewiring.initial_sparsity: expected at most model.sparsity = {recipe.sparsity}, "
                f"got {settings['initial_sparsity']}"
            )

    @classmethod
    def starting_sparsity(cls, recipe: MethodRecipe) -> float:
        return recipe.rewiring["initial_sparsity"]

    # ---- the engine's hooks -------------------------------------------------------------------

    def _prune(self, plan: RewirePlan, layers: list[SparseLayer]) -> tuple[float, float]:
        if self.scope == "global":
            now = sum(layer.weight_values.numel() for layer in layers)
            plan.prune_smallest((now - self._wanted(layers)) // layers[0].block, regrown=False)
        else:
            targets = [self.scheduled([x], self.iteration) // x.block for x in layers]
            plan.prune_smallest_each([m - n for m, n in zip(plan.nnz, targets, strict=True)])
        return plan.threshold, plan.threshold

    def _grow(self, plan: RewirePlan, layers: list[SparseLayer]) -> None:
        plan.grow([0] * len(layers))

    def _wanted(self, layers: list[SparseLayer]) -> int:
        if self.scope == "global":
            return self.scheduled(layers, self.iteration)
        return sum(self.scheduled([layer], self.iteration) for layer in layers)

    def _policy_state(self) -> State:
        return {"initial": dict(self.initial)}

    def _load_policy_state(self, state: State) -> None:
        initial = under_names(self.initial, state["initial"])
        if set(initial) != set(self.initial):
            raise ValueError(
                f"initial: expected the layers {sorted(self.initial)}, got {sorted(initial)}"
            )
        self.initial = {name: as_int(n, f"initial: {name}", 0) for name, n in initial.items()}
