"""Limits of single values of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsr_kernels.choices import unknown
from dsr_kernels.errors import UsageError, shown
from dsr_kernels.training.recipe import references


def check_choice(value: str, key: str, limits: Mapping[str, Any]) -> None:
    """Raises UsageError for a name that is none of the choices, nor of the form of a reference."""
    libraries = limits["libraries"]
    if libraries and references.find(value, libraries) is not None:
        return
    forms = f", nor {references.forms(libraries)}" if libraries else ""
    raise UsageError(f"recipe: {key}: unknown value {unknown(value, limits['choices'])}{forms}")


def check_text(value: str, key: str) -> None:
    """Raises UsageError for a string that no file can hold: half of a surrogate pair is in it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"recipe: {key}: expected UTF-8, got {shown(value)}") from None


def check_number(value: float, key: str, most: float, limits: Mapping[str, Any]) -> None:
    """Raises UsageError unless -most <= value <= most and the field's own limits hold."""
    bounds = {"low": -most, "high": most} | {k: v for k, v in limits.items() if v is not None}
    for name, text, bad in (
        ("low", "at least", lambda bound: value < bound),
        ("high", "at most", lambda bound: value > bound),
        ("below", "below", lambda bound: value >= bound),
    ):
        if name in bounds and bad(bounds[name]):
            bound = bounds[name]
            raise UsageError(f"recipe: {key}: expected a value {text} {bound}, got {shown(value)}")
