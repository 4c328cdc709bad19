"""Values of a recipe that are lists of names or small tables, and their form in TOML."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from dsr_kernels.errors import UsageError, shown
from dsr_kernels.training.recipe.limits import check_text

Names = list[str]
Table = dict[str, Any]  # of texts, numbers, truth values and lists of these
BARE = re.compile(r"[A-Za-z0-9_-]+")


def as_names(value: Any, key: str) -> Names:
    """A list of names. Raises UsageError, which names the key, for anything else."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UsageError(f"recipe: {key}: expected a list of strings, got {shown(value)}")
    for name in value:
        _check(name, key)
    return list(value)


def as_table(value: Any, key: str) -> Table:
    """A table whose values TOML can hold. Raises UsageError, which names the key, for others."""
    if not isinstance(value, dict):
        raise UsageError(
            f"recipe: {key}: expected a table such as {{ name = 1 }}, got {shown(value)}"
        )
    for name, entry in value.items():
        _check(name, key)
        _check(entry, f"{key}.{name}")
    return dict(value)


def _check(value: Any, key: str, depth: int = 0) -> None:
    if isinstance(value, list) and depth < 4:
        for entry in value:
            _check(entry, key, depth + 1)
        return
    if isinstance(value, str):
        check_text(value, key)
        return
    is_number = isinstance(value, (bool, int)) or (
        isinstance(value, float) and math.isfinite(value)
    )
    if not is_number or abs(value) > 2**63 - 1:
        raise UsageError(
            f"recipe: {key}: expected a string, a number, true, false or a list of these, got "
            f"{shown(value)}"
        )


def in_toml(value: Any) -> str:
    """The value as it stands in a TOML file."""
    if isinstance(value, dict):
        inside = ", ".join(f"{_name(name)} = {in_toml(entry)}" for name, entry in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(in_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


def _name(name: str) -> str:
    return name if BARE.fullmatch(name) else _text(name)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
