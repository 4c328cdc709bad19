"""From a recipe's method and its [rewiring] table to the rewirer that trains."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import nn

from dsr_kernels.errors import UsageError
from dsr_kernels.rewiring import METHODS, Rewirer
from dsr_kernels.training.recipe.schema import Recipe, Rewiring, Schedule

LAYERWISE = ("set", "rigl", "snfs")
SCHEDULED = ("dsr", *LAYERWISE, "gmp")  # act every so many iterations


def build_rewirer(
    recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, epoch_length: int
) -> Rewirer | None:
    """The recipe's rewiring with its epochs turned into iterations; None for a dense model.

    UsageError for what the method refuses.
    """
    if recipe.method not in METHODS:
        return None
    try:
        return _build(recipe, model, optimizer, epoch_length)
    except ValueError as error:
        named = str(error).partition(":")[0] in (field.name for field in fields(Rewiring))
        raise UsageError(f"recipe: {'rewiring.' * named}{error}") from None


def _build(
    recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, epoch_length: int
) -> Rewirer:
    method, settings = METHODS[recipe.method], recipe.rewiring
    if recipe.method == "static":
        return method(model, optimizer)
    options: dict[str, Any] = {"seed": recipe.seed}
    if recipe.method in SCHEDULED:
        options["schedule"] = in_iterations(settings.every, epoch_length)
    stop = round(settings.stop_epoch * epoch_length)
    total = recipe.training.epochs * epoch_length
    if recipe.method == "gmp":
        begin = round(settings.begin_epoch * epoch_length)
        return method(model, optimizer, **options, begin=begin, end=stop or total,
                      final_sparsity=recipe.model.sparsity, scope=settings.scope,
                      density_schedule=settings.density_schedule)  # fmt: skip
    options["stop"] = stop or None
    if recipe.method == "dsr":
        amount = {"prune_count": settings.prune_count} if settings.prune_count else {}
        options |= amount or {"prune_fraction": settings.prune_fraction}
        names = ("threshold", "initial_threshold", "tolerance", "allocation", "power")
        options["granularity"] = recipe.model.granularity
    elif recipe.method == "deepr":
        names = ("temperature", "final_temperature", "eta", "l1")
        options["length"] = stop or total
    else:
        names = ("final_fraction",)
        options["length"] = stop or total
        for name in ("fraction", "fraction_schedule", "growth"):
            if value := getattr(settings, name):  # else the method's own
                options[name] = value
    return method(model, optimizer, **options, **{name: getattr(settings, name) for name in names})


def in_iterations(schedule: Schedule, epoch_length: int) -> list[tuple[int, int]]:
    return [(round(epoch * epoch_length), int(value)) for epoch, value in schedule]


def check(recipe: Recipe) -> None:
    """UsageError for what the method lacks or could not do, that no single key can tell."""
    rewiring, method = recipe.rewiring, recipe.method
    if method in SCHEDULED:
        if not rewiring.every:
            raise UsageError(f"recipe: rewiring.every is missing: method {method} needs it")
        if any(value != int(value) for _, value in rewiring.every):
            raise UsageError(
                f"recipe: rewiring.every: expected whole iterations, got {rewiring.every}"
            )
    if method == "dsr" and (rewiring.prune_count > 0) == (rewiring.prune_fraction > 0):
        raise UsageError(
            "recipe: set one of rewiring.prune_count and rewiring.prune_fraction and leave the "
            f"other at 0, got {rewiring.prune_count} and {rewiring.prune_fraction}"
        )
    if method == "gmp":
        _check_pruning(recipe)
    if recipe.model.granularity == "kernel" and method not in ("dsr", "static"):
        raise UsageError(
            "recipe: model.granularity: whole kernels are for the methods dsr and static, got "
            f"{method}"
        )


def _check_pruning(recipe: Recipe) -> None:
    """UsageError where gradual pruning would not go from more weights to model.sparsity."""
    rewiring, epochs = recipe.rewiring, recipe.training.epochs
    if rewiring.stop_epoch > epochs:
        raise UsageError(
            f"recipe: rewiring.stop_epoch: expected at most training.epochs = {epochs}, for method "
            f"gmp has model.sparsity only then, got {rewiring.stop_epoch:g}"
        )
    end = rewiring.stop_epoch or epochs
    if rewiring.begin_epoch >= end:
        raise UsageError(
            f"recipe: rewiring.begin_epoch: expected less than the end of pruning, epoch {end:g}, "
            f"got {rewiring.begin_epoch:g}"
        )
    if rewiring.initial_sparsity > recipe.model.sparsity:
        raise UsageError(
            "recipe: rewiring.initial_sparsity: expected at most model.sparsity = "
            f"{recipe.model.sparsity}, got {rewiring.initial_sparsity}"
        )
