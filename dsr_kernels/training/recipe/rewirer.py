"""From a recipe's method and its [rewiring] table to the rewirer that trains.

What a method takes from a recipe is the method's own affair: see `rewiring/recipe_keys.py`.
"""

from __future__ import annotations

from dataclasses import asdict, fields

import torch
from torch import nn

from dsr_kernels.errors import UsageError
from dsr_kernels.rewiring import METHODS, Rewirer
from dsr_kernels.rewiring.recipe_keys import ByEpoch, MethodRecipe
from dsr_kernels.training.recipe.schema import Recipe, Rewiring


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
        epochs=recipe.training.epochs,
        seed=recipe.seed,
    )


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
    if recipe.model.granularity == "kernel" and not method.WHOLE_KERNELS:
        able = " and ".join(name for name, known in METHODS.items() if known.WHOLE_KERNELS)
        raise UsageError(
            f"recipe: model.granularity: whole kernels are for the methods {able}, got "
            f"{recipe.method}"
        )
