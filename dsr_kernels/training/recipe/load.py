"""Reads recipes, which are TOML files, applies overrides to them, and writes them into runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsr_kernels.choices import unknown
from dsr_kernels.errors import UsageError, check_path, require, shown
from dsr_kernels.training.recipe import model_keys, references, rewirer
from dsr_kernels.training.recipe.scaling import scale
from dsr_kernels.training.recipe.schema import (
    Model,
    Recipe,
    Schedule,
    convert,
    hint_of,
)
from dsr_kernels.training.recipe.tables import Names, Table, in_toml
from dsr_kernels.training.recipe.variants import merge, take_by_sparsity, take_variants
from dsr_kernels.training.trackers import TRACKERS

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = require("tomli", "reading a recipe on Python 3.10")

FOLDER = Path(__file__).parent
DEFAULT = "wrn28_2-digits"
# What a run may be given anew whenever it goes on: how processes wait for each other, trackers,
# graphs.
FREE = (
    *("distributed.timeout_seconds", "distributed.bucket_mb", "tracking.to", "tracking.project"),
    "training.cuda_graph",
)
MOST_BYTES = 2**20  # of a file in TOML; those of the package have under 2,000


def names() -> list[str]:
    """Names of the recipes in the package, the default first."""
    found = sorted(path.stem for path in FOLDER.glob("*.toml"))
    return sorted(found, key=lambda name: name != DEFAULT)


def load(
    source: str,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    *,
    epochs: int | None = None,
    of_run: bool = False,
) -> Recipe:
    """The recipe named `source`, or the file at that path, with ``key=value`` overrides applied.

    A file may hold tables ``[variant.METHOD]``. They replace the file's other values if that
    method is chosen, since the paper trains its baselines on schedules of their own. Tables
    ``[variant.METHOD.at."0.9"]`` do so for that sparsity alone. Overrides win over variants.
    Where nothing says when rewires end (``rewiring.stop_epoch``), they end after three quarters.

    epochs: trains that many, with the file's schedules stretched or shortened to them.
    of_run: the file is a run's. Those of older versions hold keys of other methods.

    Keys of [rewiring] that are not set get the value that they stand for. Raises UsageError, which
    names the key, for whatever is wrong, and for a key that the method does not take.
    """
    table = _parse(_locate(source))
    variants = take_variants(table)
    changes = [_parse_override(text) for text in overrides]
    own_method = table.get("method", Recipe.method)
    method = dict(changes).get("method", own_method)
    if not of_run:
        _check_taken(table, variants, changes, {own_method, method}, method)
    if method in variants:
        by_sparsity = take_by_sparsity(method, variants[method])
        merge(table, variants[method])
        own = table["model"] if isinstance(table.get("model"), dict) else {}
        sparsity = dict(changes).get("model.sparsity", own.get("sparsity", Model.sparsity))
        for level, more in by_sparsity.items():
            merge(table, more if level == sparsity else {})
    table.setdefault("name", Path(source).stem)
    if epochs is not None:
        scale(table, epochs)
    for key, value in changes:
        _assign(table, key, value)
    if seed is not None:
        table["seed"] = seed
    recipe = convert(Recipe, table)
    if not of_run and "stop_epoch" not in table.get("rewiring", {}):
        rewirer.stop_in_time(recipe)
    model_keys.resolve(recipe)
    _check(recipe)
    return rewirer.resolved(recipe)


def _check_taken(
    table: dict[str, Any],
    variants: dict[str, dict[str, Any]],
    changes: list[tuple[str, Any]],
    methods: set[Any],
    method: Any,
) -> None:
    """Raises UsageError for a key of [rewiring] that no method takes for which it is given: none of
    `methods` where it stands in the file, `method` where it is an override.
    """
    places = [("recipe: ", table, methods)]
    places += [(f"recipe: [variant.{name}]: ", variants[name], {name}) for name in variants]
    for where, place, takers in places:
        keys = place.get("rewiring")
        for key in keys if isinstance(keys, dict) else ():
            if not any(rewirer.takes(taker, f"rewiring.{key}") for taker in takers):
                raise rewirer.not_taken(where, f"rewiring.{key}", takers)
    for key, _ in changes:
        if not rewirer.takes(method, key):
            raise rewirer.not_taken("--set ", key, {method})


def parse_text(text: str, where: str) -> Recipe:
    """The recipe in a text that `dump` wrote. A UsageError says `where` the text is from."""
    try:
        return rewirer.resolved(convert(Recipe, tomllib.loads(text)))
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
        raise UsageError(f"--set {key}: expected {_form(hint)}, got {shown(raw)}") from None


def _form(hint: Any) -> str:
    """What a value of the type `hint` looks like."""
    if hint == Schedule:
        return "[[epoch, value], ...]"
    if hint in (Names, Table):
        return '["name", ...]' if hint == Names else "{ name = value, ... }"
    return {int: "a whole number", float: "a number", bool: "true or false"}[hint]


def override(key: str, value: Any) -> str:
    """``key=value`` as `load` takes it, for a value as TOML gives it."""
    return f"{key}={value if isinstance(value, str) else in_toml(value)}"


def _assign(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise UsageError(f"recipe: expected a table [{parent}], got {shown(table)}")
    table[leaf] = value


def _check(recipe: Recipe) -> None:
    """Raises UsageError for values that do not go together."""
    model_keys.check(recipe)
    rewirer.check(recipe)
    for name in recipe.tracking.to:
        if name not in TRACKERS and references.find(name, ()) is None:
            known = unknown(name, TRACKERS)
            raise UsageError(
                f"recipe: tracking.to: unknown tracker {known}, nor package.module:function"
            )
    if not recipe.optimizer.lr:
        raise UsageError("recipe: optimizer.lr: expected at least one value, got []")
    if recipe.optimizer.nesterov and recipe.optimizer.momentum == 0:
        raise UsageError("recipe: optimizer.nesterov needs optimizer.momentum above 0")


def dump(recipe: Recipe) -> str:
    """The recipe as TOML, without keys that its method does not take. `load` makes the same recipe
    of it.
    """
    plain, tables = [], []
    for spec in dataclasses.fields(recipe):
        value = getattr(recipe, spec.name)
        if dataclasses.is_dataclass(value):
            lines = [f"{key} = {in_toml(entry)}" for key, entry in _table(recipe, spec.name)]
            tables.append("\n".join([f"[{spec.name}]", *lines]))
        else:
            plain.append(f"{spec.name} = {in_toml(value)}")
    return "\n".join(plain) + "\n\n" + "\n\n".join(tables) + "\n"


def _table(recipe: Recipe, name: str) -> list[tuple[str, Any]]:
    """The keys of a table and their values, without those that say nothing of this run."""
    table = getattr(recipe, name)
    pairs = [(spec.name, getattr(table, spec.name)) for spec in dataclasses.fields(table)]
    silent = rewirer.silent_keys(recipe) if name == "rewiring" else set()
    return [(key, value) for key, value in pairs if key not in silent]


def values(recipe: Recipe) -> dict[str, Any]:
    """Every value that `dump` writes under its dotted key; without the description, which changes
    nothing.
    """
    flat: dict[str, Any] = {}
    for spec in dataclasses.fields(recipe):
        value = getattr(recipe, spec.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{spec.name}.{key}": entry for key, entry in _table(recipe, spec.name)}
        elif spec.name != "description":
            flat[spec.name] = value
    return flat


def with_free_settings(own: Recipe, given: Recipe | None) -> Recipe:
    """`own` with what a run may be given anew each time it goes on, from `given`."""
    for key in () if given is None else FREE:
        name, _, leaf = key.partition(".")
        table = dataclasses.replace(
            getattr(own, name), **{leaf: getattr(getattr(given, name), leaf)}
        )
        own = dataclasses.replace(own, **{name: table})
    return own


def difference(one: Recipe, other: Recipe) -> str | None:
    """The first key in which two recipes differ, with both values; None where they train alike.

    Descriptions may differ, and what is `FREE`. So may a value that only one of them has been
    given: runs of older versions, and their recipes, do not say when rewires end.
    """
    ours, theirs = values(one), values(other)
    for key in ours | theirs:
        pair = ours.get(key), theirs.get(key)
        supposed = any(isinstance(value, rewirer.Supposed) for value in pair)
        if pair[0] != pair[1] and key not in FREE and not supposed:
            return f"{key}: {pair[0]!r} and {pair[1]!r}"
    return None
