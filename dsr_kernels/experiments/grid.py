"""Grid files: which methods, sparsities and seeds of a recipe to run, and with which settings.

    recipe = "lenet300-fashion_mnist"
    methods = ["dense", "set", "dsr", "compressed"]
    sparsities = [0.9, 0.95]
    seeds = [0, 1, 2]
    [set]                                   # for every cell, keys as in `dsr train --set`
    training.epochs = 20
    [method.compressed]                     # a name of one's own, for a method with settings
    method = "gmp"
    start.from = "dense"                    # starts from that method's run of the same seed
    [method.set.at."0.9"]                   # for one sparsity
    rewiring.fraction = 0.138

Whatever is wrong with a file, or with the recipe of a cell, is found before anything runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsr_kernels.choices import unknown
from dsr_kernels.errors import UsageError, check_path, shown
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.rewirer import takes
from dsr_kernels.training.recipe.schema import METHOD_NAMES, Recipe, all_keys, is_table

FOLDER = Path(__file__).parent / "grids"
KEYS = ("description", "recipe", "methods", "sparsities", "seeds", "set", "method")
AXES = {"model.sparsity": "sparsities", "seed": "seeds"}  # settings that the grid gives itself
NAME = re.compile(r"[A-Za-z0-9_.]+")  # of a method: part of a folder's name
ANY_SPARSITY = ("dense",)  # methods that do not depend on the sparsity

Settings = dict[str, Any]  # by dotted key


@dataclass(frozen=True)
class Method:
    """A row of the grid's table: a method of the recipes, with settings of its own."""

    name: str
    kind: str  # the recipe's `method`
    settings: Settings = field(default_factory=dict)
    at: dict[float, Settings] = field(default_factory=dict)  # by sparsity
    starts_from: str = ""  # another method of the grid, whose run this one starts from


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    method: str
    sparsity: float | None  # None: the run does not depend on it
    seed: int
    recipe: Recipe
    needs: str = ""  # name of the cell it starts from

    @property
    def name(self) -> str:
        return _cell_name(self.method, self.sparsity, self.seed)


@dataclass(frozen=True)
class Grid:
    name: str
    description: str
    recipe: str
    methods: dict[str, Method]
    sparsities: list[float]
    seeds: list[int]
    settings: Settings
    text: str  # of the file

    def cells(self, runs: Path, overrides: list[str] = ()) -> list[Cell]:
        """All cells in the order to run them. `runs` is the folder of their runs.

        Seed follows seed, so that one whole table is there early. Within a seed, the runs that
        others start from come first. Raises UsageError, which names the cell, for a wrong recipe.
        """
        for text in overrides:
            _refuse_axes(_key_of(text), "--set")
        wanted = {method.starts_from for method in self.methods.values()}
        ordered = sorted(
            self.methods.values(), key=lambda m: (m.name not in wanted, _depth(self, m))
        )
        return [
            self._cell(method, sparsity, seed, runs, overrides)
            for seed in self.seeds
            for method in ordered
            for sparsity in ([None] if method.kind in ANY_SPARSITY else self.sparsities)
        ]

    def _cell(
        self, method: Method, sparsity: float | None, seed: int, runs: Path, overrides: list[str]
    ) -> Cell:
        settings = dict(method.settings)
        settings |= method.at.get(sparsity, {}) if sparsity is not None else {}
        shared = {"rewiring.record_exploration": True, **self.settings}
        # What is set for all cells yields to a method's own, and is nothing to some methods.
        shared = {key: value for key, value in shared.items() if takes(method.kind, key)}
        changes = [recipes.override(key, value) for key, value in {**shared, **settings}.items()]
        changes += [text for text in overrides if takes(method.kind, _key_of(text))]
        changes.append(f"method={method.kind}")
        if sparsity is not None:
            changes.append(f"model.sparsity={sparsity!r}")
        needs = ""
        if method.starts_from:
            source = self.methods[method.starts_from]
            level = None if source.kind in ANY_SPARSITY else sparsity
            needs = _cell_name(source.name, level, seed)
            changes.append(f"start.run={runs / needs}")
        try:
            recipe = recipes.load(self.recipe, changes, seed)
        except UsageError as error:
            name = _cell_name(method.name, sparsity, seed)
            raise UsageError(f"grid {self.name}: {name}: {error}") from None
        return Cell(method.name, sparsity, seed, recipe, needs)


def _key_of(override: str) -> str:
    return override.partition("=")[0].strip()


def _depth(grid: Grid, method: Method) -> int:
    """How many runs have to come before a run of this method."""
    depth = 0
    while method.starts_from:
        method, depth = grid.methods[method.starts_from], depth + 1
    return depth


def _cell_name(method: str, sparsity: float | None, seed: int) -> str:
    level = "" if sparsity is None else f"-{sparsity!r}"
    return f"{method}{level}-s{seed}"


def names() -> list[str]:
    """Names of the grids in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(source: str) -> Grid:
    """The grid named `source`, or the one in the file at that path."""
    check_path(source, "experiment")
    path = FOLDER / f"{source}.toml"
    if "/" in source or not path.is_file():
        path = Path(source)
        if not path.is_file():
            if path.suffix == ".toml" or "/" in source:
                raise UsageError(f"experiment: there is no file {source}")
            raise UsageError(f"experiment: unknown grid {unknown(source, names())}")
    text, table = recipes.read_toml(path, "a grid")
    try:
        return _grid(path, text, table)
    except UsageError as error:
        raise UsageError(f"grid {path.stem}: {error}") from None


def _grid(path: Path, text: str, table: dict[str, Any]) -> Grid:
    for key in table:
        if key not in KEYS:
            raise UsageError(f"unknown key {unknown(key, KEYS)}")
    recipe = table.get("recipe")
    if not isinstance(recipe, str):
        raise UsageError(f"recipe: expected the name of a recipe or a file, got {shown(recipe)}")
    if recipe.endswith(".toml") and not Path(recipe).is_absolute():
        recipe = str(path.parent / recipe)
    recipes.load(recipe)
    listed = _list(table, "methods", str, "names of methods")
    sparsities = _list(table, "sparsities", (int, float), "numbers in [0, 1)")
    seeds = _list(table, "seeds", int, "whole numbers from 0")
    if not all(0 <= sparsity < 1 for sparsity in sparsities):
        raise UsageError(f"sparsities: expected numbers in [0, 1), got {shown(sparsities)}")
    if min(seeds) < 0:
        raise UsageError(f"seeds: expected whole numbers from 0, got {shown(seeds)}")
    sparsities = [float(sparsity) for sparsity in sparsities]
    settings = _settings(_subtable(table, "set", "[set]"), "[set]")
    tables = _subtable(table, "method", "[method]")
    for name in tables:
        if name not in listed:
            raise UsageError(f"[method.{name}]: not in methods: {unknown(name, listed)}")
    methods = {name: _method(name, tables, sparsities) for name in listed}
    _check_starts(methods)
    description = str(table.get("description", ""))
    return Grid(path.stem, description, recipe, methods, sparsities, seeds, settings, text)


def _list(table: dict[str, Any], key: str, kind: type | tuple[type, ...], words: str) -> list[Any]:
    """The list at `key`. Raises UsageError unless it holds values of `kind`, each once."""
    values = table.get(key)
    right = isinstance(values, list) and values
    if not right or any(isinstance(v, bool) or not isinstance(v, kind) for v in values):
        raise UsageError(f"{key}: expected a list of {words}, got {shown(values)}")
    if len(set(values)) < len(values):
        raise UsageError(f"{key}: expected each value once, got {shown(values)}")
    return values


def _subtable(table: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    found = table.get(key, {})
    if not isinstance(found, dict):
        raise UsageError(f"{where}: expected a table, got {shown(found)}")
    return found


def _method(name: str, tables: dict[str, Any], sparsities: list[float]) -> Method:
    where = f"[method.{name}]"
    if not NAME.fullmatch(name):
        raise UsageError(f"methods: expected a name of letters, digits, _ and ., got {name!r}")
    table = dict(_subtable(tables, name, where))
    levels = _subtable(table, "at", f"[method.{name}.at]")
    table.pop("at", None)
    flat = dict(_flatten(table))
    kind = flat.pop("method", name)
    if kind not in METHOD_NAMES:
        known = METHOD_NAMES if "method" in table else (*METHOD_NAMES, *tables)
        hint = "" if "method" in table else f" (a name of your own needs a table {where})"
        raise UsageError(f"method {name}: unknown method {unknown(str(kind), known)}{hint}")
    source = flat.pop("start.from", "")
    settings = _settings(flat, where)
    if source and "start.run" in settings:
        raise UsageError(f"{where}: give one of start.from and start.run, not both")
    at = {}
    for level in levels:
        here = f'[method.{name}.at."{level}"]'
        known = {str(sparsity): sparsity for sparsity in sparsities}
        if level not in known:
            raise UsageError(f"{here}: not one of the sparsities: {unknown(level, known)}")
        if kind in ANY_SPARSITY:
            raise UsageError(f"{here}: method {kind} does not depend on the sparsity")
        at[known[level]] = _settings(_subtable(levels, level, here), here)
    return Method(name, kind, settings, at, source)


def _check_starts(methods: dict[str, Method]) -> None:
    for method in methods.values():
        where = f"[method.{method.name}]: start.from"
        if method.starts_from and method.starts_from not in methods:
            raise UsageError(f"{where}: unknown method {unknown(method.starts_from, methods)}")
        path = [method.name]
        while source := methods[path[-1]].starts_from:
            if source in path:
                raise UsageError(f"{where}: these start from each other: {', '.join(path)}")
            path.append(source)
        source = method.starts_from
        if method.kind in ANY_SPARSITY and source and methods[source].kind not in ANY_SPARSITY:
            raise UsageError(
                f"{where}: a {method.kind} run belongs to no sparsity, so it cannot start from "
                f"{source}"
            )


def _flatten(table: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested tables, whose keys may be dotted already."""
    for key, value in table.items():
        dotted = f"{path}.{key}" if path else key
        if isinstance(value, dict) and not is_table(dotted):
            yield from _flatten(value, dotted)
        else:
            yield dotted, value


def _settings(table: dict[str, Any], where: str) -> Settings:
    settings = dict(_flatten(table))
    known = [key for key in all_keys() if key not in (*AXES, "method")]
    for key in settings:
        _refuse_axes(key, where)
        if key not in known:
            raise UsageError(f"{where}: unknown key {unknown(key, known)}")
    return settings


def _refuse_axes(key: str, where: str) -> None:
    if key in AXES:
        raise UsageError(f"{where}: {key} cannot be set, since the grid's {AXES[key]} give it")
    if key == "method":
        raise UsageError(f"{where}: method cannot be set here, since the grid's methods give it")
