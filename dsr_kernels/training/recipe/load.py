"""Reads recipes, which are TOML files, applies overrides to them, and writes them into runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from dsr_kernels.choices import unknown
from dsr_kernels.errors import UsageError, check_path, require, shown
from dsr_kernels.training.recipe import rewirer
from dsr_kernels.training.recipe.schema import (
    METHOD_NAMES,
    Model,
    Recipe,
    Schedule,
    convert,
    hint_of,
)

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = require("tomli", "reading a recipe on Python 3.10")

FOLDER = Path(__file__).parent
DEFAULT = "wrn28_2-digits"
MOST_BYTES = 2**20  # of a file in TOML; those of the package have under 2,000


def names() -> list[str]:
    """Names of the recipes in the package, the default first."""
    found = sorted(path.stem for path in FOLDER.glob("*.toml"))
    return sorted(found, key=lambda name: name != DEFAULT)


def load(source: str, overrides: list[str] = (), seed: int | None = None) -> Recipe:
    """The recipe named `source`, or the file at that path, with ``key=value`` overrides applied.

    A file may hold tables ``[variant.METHOD]``. They replace the file's other values if that
    method is chosen, since the paper trains its baselines on schedules of their own. Tables
    ``[variant.METHOD.at."0.9"]`` do so for that sparsity alone. Overrides win over variants.
    Raises UsageError, which names the key, for whatever is wrong.
    """
    table = _parse(_locate(source))
    variants = _variants(table)
    changes = [_parse_override(text) for text in overrides]
    method = dict(changes).get("method", table.get("method", Recipe.method))
    if method in variants:
        by_sparsity = _by_sparsity(method, variants[method])
        _merge(table, variants[method])
        own = table["model"] if isinstance(table.get("model"), dict) else {}
        sparsity = dict(changes).get("model.sparsity", own.get("sparsity", Model.sparsity))
        for level, more in by_sparsity.items():
            _merge(table, more if level == sparsity else {})
    table.setdefault("name", Path(source).stem)
    for key, value in changes:
        _assign(table, key, value)
    if seed is not None:
        table["seed"] = seed
    recipe = convert(Recipe, table)
    _check(recipe)
    return recipe


def parse_text(text: str, where: str) -> Recipe:
    """The recipe in a text that `dump` wrote. A UsageError says `where` the text is from."""
    try:
        return convert(Recipe, tomllib.loads(text))
    except (tomllib.TOMLDecodeError, UsageError) as error:
        raise UsageError(f"{where}: not a recipe: {error}") from None


def _locate(source: str) -> Path:
    check_path(source, "--recipe")
    path = FOLDER / f"{source}.toml"
    if "/" not in source and path.is_file():
        return path
    path = Path(source)
    if path.is_file():
        return path
    if path.suffix == ".toml" or "/" in source:
        raise UsageError(f"--recipe: there is no file {source}")
    raise UsageError(f"--recipe: unknown recipe {unknown(source, names())}")


def _parse(path: Path) -> dict[str, Any]:
    return read_toml(path, "a recipe")[1]


def read_toml(path: Path, what: str) -> tuple[str, dict[str, Any]]:
    """The text and the tables of a file that should be `what`. Raises UsageError if it is not."""
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise UsageError(
                f"{path}: not {what}: expected at most {MOST_BYTES:,} bytes, got {size:,}"
            )
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise UsageError(f"{path}: not {what} in TOML: brackets lie too deep") from None
    except ValueError as error:  # TOML, UTF-8, thousands of digits
        raise UsageError(f"{path}: not {what} in TOML: {error}") from None


def _parse_override(text: str) -> tuple[str, Any]:
    """(key, value) of ``key=value``. A string is taken as it is, all else is read as TOML."""
    key, equals, raw = text.partition("=")
    key, raw = key.strip(), raw.strip()
    if not equals:
        raise UsageError(f"--set: expected key=value, got {shown(text)}")
    hint = hint_of(key)
    if hint is str:
        return key, raw
    try:
        return key, float(raw) if hint is float else tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):
        kinds = {int: "a whole number", float: "a number", bool: "true or false"}
        expected = "[[epoch, value], ...]" if hint == Schedule else kinds[hint]
        raise UsageError(f"--set {key}: expected {expected}, got {shown(raw)}") from None


def override(key: str, value: Any) -> str:
    """``key=value`` as `load` takes it, for a value as TOML gives it."""
    return f"{key}={value if isinstance(value, str) else _toml(value)}"


def _assign(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise UsageError(f"recipe: expected a table [{parent}], got {shown(table)}")
    table[leaf] = value


def _variants(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
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


def _by_sparsity(method: str, variant: dict[str, Any]) -> dict[float, dict[str, Any]]:
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


def _merge(table: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict):
            own = table.setdefault(key, {})
            if not isinstance(own, dict):
                raise UsageError(f"recipe: expected a table [{key}], got {shown(own)}")
            _merge(own, value)
        else:
            table[key] = value


def _check(recipe: Recipe) -> None:
    """Raises UsageError for values that do not go together."""
    rewirer.check(recipe)
    if not recipe.optimizer.lr:
        raise UsageError("recipe: optimizer.lr: expected at least one value, got []")
    if recipe.optimizer.nesterov and recipe.optimizer.momentum == 0:
        raise UsageError("recipe: optimizer.nesterov needs optimizer.momentum above 0")


def dump(recipe: Recipe) -> str:
    """The recipe as TOML. `load` makes the same recipe of it."""
    plain, tables = [], []
    for spec in dataclasses.fields(recipe):
        value = getattr(recipe, spec.name)
        if not dataclasses.is_dataclass(value):
            plain.append(f"{spec.name} = {_toml(value)}")
            continue
        lines = [f"{f.name} = {_toml(getattr(value, f.name))}" for f in dataclasses.fields(value)]
        tables.append("\n".join([f"[{spec.name}]", *lines]))
    return "\n".join(plain) + "\n\n" + "\n\n".join(tables) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


def difference(one: Recipe, other: Recipe) -> str | None:
    """The first key in which two recipes differ, with both values; None where they train alike.

    Descriptions may differ.
    """

    def walk(a: Any, b: Any, path: str) -> str | None:
        for spec in dataclasses.fields(a):
            left, right, key = getattr(a, spec.name), getattr(b, spec.name), f"{path}{spec.name}"
            if dataclasses.is_dataclass(left):
                if found := walk(left, right, f"{key}."):
                    return found
            elif left != right and key != "description":
                return f"{key}: {left!r} and {right!r}"
        return None

    return walk(one, other, "")
