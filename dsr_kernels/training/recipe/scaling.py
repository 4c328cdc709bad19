"""A recipe for another number of epochs than it was written for."""

from __future__ import annotations

from typing import Any

from dsr_kernels.errors import UsageError, shown
from dsr_kernels.rewiring import METHODS
from dsr_kernels.rewiring.recipe_keys import ByEpoch, all_keys
from dsr_kernels.training.recipe.schema import MOST_EPOCHS, Recipe

# Dotted keys whose values are epochs, and those that hold for epochs.
EPOCHS = [f"rewiring.{key.name}" for key in all_keys(METHODS.values()) if key.epochs]
SCHEDULES = ["optimizer.lr"]
SCHEDULES += [f"rewiring.{key.name}" for key in all_keys(METHODS.values()) if key.kind == ByEpoch]


def scale(table: dict[str, Any], epochs: int) -> None:
    """Has the table of a recipe train for so many epochs. Its schedules keep their shape: all
    epochs in them are multiplied alike. Intervals between rewires stay, as they are iterations.

    Raises UsageError for a number of epochs out of range. What else is wrong is left to be found.
    """
    if not 1 <= epochs <= MOST_EPOCHS:
        raise UsageError(f"--epochs: expected 1 to {MOST_EPOCHS}, got {shown(epochs)}")
    training = table.setdefault("training", {})
    written = training.get("epochs") if isinstance(training, dict) else None
    if not _is_number(written) or written <= 0:
        raise UsageError(
            f"--epochs: expected a recipe with training.epochs to scale from, got {shown(written)}"
        )
    training["epochs"] = epochs
    for key in (*EPOCHS, *SCHEDULES):
        name, _, leaf = key.partition(".")
        own = table.get(name)
        if isinstance(own, dict) and leaf in own:
            scaled = _scaled_epochs if key in EPOCHS else _scaled_schedule
            own[leaf] = scaled(own[leaf], epochs, written)


def _scaled_epochs(value: Any, epochs: int, written: float) -> Any:
    return value * epochs / written if _is_number(value) else value


def _scaled_schedule(value: Any, epochs: int, written: float) -> Any:
    if not isinstance(value, list):  # a number holds for all epochs
        return value
    pairs = [pair for pair in value if isinstance(pair, list) and len(pair) == 2]
    if len(pairs) < len(value) or not all(_is_number(begin) for begin, _ in pairs):
        return value
    return [[begin * epochs / written, number] for begin, number in pairs]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def never_reached(recipe: Recipe) -> str:
    """What of the recipe's schedules lies behind its last epoch, in words; "" for nothing."""
    last, found = recipe.training.epochs, []
    for key in SCHEDULES:
        name, _, leaf = key.partition(".")
        late = [begin for begin, _ in getattr(getattr(recipe, name), leaf) if begin >= last]
        if late:
            found.append(f"{key} changes at epoch {', '.join(f'{epoch:g}' for epoch in late)}")
    for key in EPOCHS:
        epoch = getattr(recipe.rewiring, key.partition(".")[2])
        if epoch > last:
            found.append(f"{key} is {epoch:g}")
    return "; ".join(found)
