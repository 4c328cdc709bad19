"""From a recipe's method and its [rewiring] table to the rewirer that trains.

What a method takes from a recipe is the method's own affair: see `rewiring/recipe_keys.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import nn

from dsr_kernels.errors import UsageError
from dsr_kernels.rewiring import METHODS, Rewirer
from dsr_kernels.rewiring.recipe_keys import STOP_EPOCH, ByEpoch, MethodRecipe
from dsr_kernels.training.recipe.schema import METHOD_NAMES, Recipe, Rewiring

OF_ALL = ("record_exploration",)  # keys of [rewiring] that are training's own


def method_of(recipe: Recipe) -> type[Rewirer]:
    """The class of the recipe's method. For a dense model it is `Rewirer` itself, which no recipe
    key concerns.
    """
    return METHODS.get(recipe.method, Rewirer)


def for_method(recipe: Recipe) -> MethodRecipe:
    """The part of a recipe that a method's class reads."""
    return MethodRecipe(
        rewiring=asdict(recipe.rewiring),
        sparsity=recipe.model.sparsity,
        granularity=recipe.model.granularity,
        block_size=recipe.model.block_size,
        epochs=recipe.training.epochs,
        seed=recipe.seed,
    )


def takes(method: Any, key: str) -> bool:
    """Whether the method called `method` takes the dotted key. It does where either is unknown, for
    that is found elsewhere.
    """
    table, _, name = key.partition(".")
    if table != "rewiring" or method not in METHOD_NAMES or name in OF_ALL:
        return True
    known = any(name == spec.name for spec in fields(Rewiring))
    own = METHODS[method].RECIPE if method in METHODS else ()
    return not known or any(name == spec.name for spec in own)


def not_taken(where: str, key: str, methods: Collection[str]) -> UsageError:
    """The error for a key that none of `methods` takes. `where` says who gave it."""
    able = [name for name in METHODS if takes(name, key)]
    verb = "does" if len(methods) == 1 else "do"
    return UsageError(
        f"{where}{key}: {' and '.join(sorted(methods))} {verb} not take it; it is for method "
        f"{', '.join(able)}"
    )


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with the values that [rewiring] trains with: what is not set gets the method's own
    value, and what the method does not take is not set.
    """
    own = method_of(recipe).resolved(for_method(recipe))
    given = {
        spec.name: own.get(spec.name, getattr(recipe.rewiring, spec.name))
        for spec in fields(Rewiring)
        if takes(recipe.method, f"rewiring.{spec.name}")
    }
    return replace(recipe, rewiring=Rewiring(**given))


def silent_keys(recipe: Recipe) -> set[str]:
    """The keys of [rewiring] that say nothing of this run: those of other methods, and those for
    which another one stands, as prune_count for prune_fraction.
    """
    silent = {f.name for f in fields(Rewiring) if not takes(recipe.method, f"rewiring.{f.name}")}
    for key in method_of(recipe).RECIPE:
        if key.unset and not key.epochs and not getattr(recipe.rewiring, key.name):
            silent.add(key.name)
    return silent


def build_rewirer(
    recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, epoch_length: int
) -> Rewirer | None:
    """The recipe's rewirer, its epochs turned into iterations; None for a dense model.

    epoch_length: iterations. Raises UsageError for what the method refuses.
    """
    if recipe.method not in METHODS:
        return None
    method = METHODS[recipe.method]
    try:
        arguments = method.recipe_arguments(for_method(recipe), epoch_length)
        return method(model, optimizer, **arguments)
    except ValueError as error:
        named = str(error).partition(":")[0] in (field.name for field in fields(Rewiring))
        raise UsageError(f"recipe: {'rewiring.' * named}{error}") from None


class Supposed(float):
    """A value that nothing has given. A run that has another one goes on with its own."""

    __slots__ = ()


def stop_in_time(recipe: Recipe) -> None:
    """Ends the method's rewires after three quarters of the epochs, as `total` does in Python. It
    is written into the recipe, so that a run keeps what it began with.
    """
    if STOP_EPOCH in method_of(recipe).RECIPE:
        recipe.rewiring.stop_epoch = Supposed(0.75 * recipe.training.epochs)


def check(recipe: Recipe) -> None:
    """Raises UsageError for what the method lacks or cannot do, where no single key can tell."""
    method = method_of(recipe)
    for key in method.RECIPE:
        value = getattr(recipe.rewiring, key.name)
        if key.needed and not value:
            raise UsageError(
                f"recipe: rewiring.{key.name} is missing: method {recipe.method} needs it"
            )
        if key.kind == ByEpoch and any(number != int(number) for _, number in value):
            raise UsageError(f"recipe: rewiring.{key.name}: expected whole iterations, got {value}")
    try:
        method.check_recipe(for_method(recipe))
    except ValueError as error:
        raise UsageError(f"recipe: {error}") from None
    if recipe.model.block_size > 1 and not method.BLOCKS:
        raise UsageError(
            f"recipe: model.block_size: method {recipe.method} rewires single weights alone, "
            f"expected 1, got {recipe.model.block_size}"
        )
    if recipe.model.granularity == "kernel" and not method.WHOLE_KERNELS:
        able = " and ".join(name for name, known in METHODS.items() if known.WHOLE_KERNELS)
        raise UsageError(
            f"recipe: model.granularity: whole kernels are for the methods {able}, got "
            f"{recipe.method}"
        )
