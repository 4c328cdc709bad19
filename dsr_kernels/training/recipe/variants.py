"""Tables ``[variant.METHOD]`` of a recipe: what a file says for one method alone."""

from __future__ import annotations

from typing import Any

from dsr_kernels.choices import unknown
from dsr_kernels.errors import UsageError, shown
from dsr_kernels.training.recipe.schema import METHOD_NAMES


def take_variants(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Takes the tables ``[variant.METHOD]`` out of `table`. Raises UsageError for a wrong one."""
    variants = table.pop("variant", {})
    if not isinstance(variants, dict):
        raise UsageError(
            f"recipe: expected tables [variant.METHOD], got variant = {shown(variants)}"
        )
    for name, changes in variants.items():
        if name not in METHOD_NAMES:
            found = unknown(name, METHOD_NAMES)
            raise UsageError(f"recipe: [variant.{name}]: unknown method {found}")
        if not isinstance(changes, dict):
            raise UsageError(f"recipe: expected a table [variant.{name}], got {shown(changes)}")
    return variants


def take_by_sparsity(method: str, variant: dict[str, Any]) -> dict[float, dict[str, Any]]:
    """Takes the tables ``[variant.METHOD.at.SPARSITY]`` out of a variant."""
    levels = variant.pop("at", {})
    try:
        found = {float(level): changes for level, changes in levels.items()}
    except (AttributeError, ValueError):
        found = {0.0: None}
    if not all(isinstance(changes, dict) for changes in found.values()):
        raise UsageError(
            f'recipe: [variant.{method}.at]: expected tables named by a sparsity, as in "0.9", got '
            f"{shown(levels)}"
        )
    return found


def merge(table: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict):
            own = table.setdefault(key, {})
            if not isinstance(own, dict):
                raise UsageError(f"recipe: expected a table [{key}], got {shown(own)}")
            merge(own, value)
        else:
            table[key] = value
