"""What goes together in a recipe's table [model]."""

from __future__ import annotations

from dsr_kernels.errors import UsageError, shown
from dsr_kernels.training.recipe.rewirer import method_of
from dsr_kernels.training.recipe.schema import MODELS, Recipe


def is_own(recipe: Recipe) -> bool:
    """Whether the model is one of this package's."""
    return recipe.model.name in MODELS


def resolve(recipe: Recipe) -> None:
    """Sets the keys of [model] that are not set and have a meaning."""
    if not is_own(recipe) and not recipe.model.preset:
        recipe.model.preset = "safe"


def check(recipe: Recipe) -> None:
    """Raises UsageError for keys of [model] that do not go together."""
    settings = recipe.model
    if is_own(recipe):
        if settings.arguments:
            raise UsageError(
                f"recipe: model.arguments: {settings.name} takes none; it has model.width"
            )
        if settings.preset:
            raise UsageError(
                f"recipe: model.preset: {settings.name} leaves dense what the paper does; "
                f"model.exclude names further layers, got {settings.preset!r}"
            )
        if settings.keep != "random":
            raise UsageError(
                f"recipe: model.keep: the weights of {settings.name} are drawn anew, expected "
                f"'random', got {settings.keep!r}"
            )
    else:
        if settings.width:
            raise UsageError(
                f"recipe: model.width: is for {', '.join(MODELS)}, expected 0 for "
                f"{settings.name}, got {settings.width:g}; its own arguments go into "
                "model.arguments"
            )
        if recipe.method == "thin_dense":
            raise UsageError(
                f"recipe: method: thin_dense needs a model with a width ({', '.join(MODELS)}), got "
                f"{settings.name}"
            )
        if settings.granularity == "kernel" and settings.keep == "magnitude":
            raise UsageError(
                "recipe: model.keep: whole kernels are kept at random, expected 'random', got "
                "'magnitude'"
            )
    if settings.overrides and method_of(recipe).SHRINKS:
        raise UsageError(
            f"recipe: model.overrides: method {recipe.method} prunes all layers to "
            f"model.sparsity, expected none, got {shown(settings.overrides)}"
        )
    for glob, sparsity in settings.overrides.items():
        if type(sparsity) not in (int, float) or not 0 <= sparsity < 1:
            raise UsageError(
                f"recipe: model.overrides: {glob}: expected a sparsity in [0, 1), got "
                f"{shown(sparsity)}"
            )
