"""How a method says what a training recipe may set of it, and how that becomes its arguments.

A recipe's [rewiring] table has keys of methods; each method takes those in its `RECIPE`, and others
are refused. Keys of the same name are one key: methods that share one share its meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

Arguments = dict[str, Any]  # of a method's constructor, beside model and optimizer
ByEpoch = list[tuple[float, float]]  # (first epoch, value) pairs; epochs may be fractions


@dataclass(frozen=True)
class Key:
    """A key of [rewiring], and the argument of the method's constructor that takes its value.

    kind: int, float, str, bool, or `ByEpoch`.
    argument: name of the argument; "": the key's own name; None: no argument takes it.
    low, below, choices: limits, low <= value < below.
    epochs: the value is in epochs and its argument in iterations, as the epochs of a `ByEpoch` are.
    unset: the empty default (0, "", []) is not passed on: the constructor's own default holds.
    needed: a recipe for the method must set it.
    """

    name: str
    kind: Any
    default: Any
    argument: str | None = ""
    low: float | None = None
    below: float | None = None
    choices: Sequence[str] | None = None
    epochs: bool = False
    unset: bool = False
    needed: bool = False

    def field(self) -> tuple[Any, ...]:
        """What keys of one name must agree in."""
        return self.name, self.kind, self.default, self.low, self.below, self.choices

    def convert(self, value: Any, epoch_length: int) -> Any:
        """The argument for a value of the recipe; `epoch_length` iterations are an epoch."""
        if self.kind == ByEpoch:
            return [(round(epoch * epoch_length), int(number)) for epoch, number in value]
        if not self.epochs:
            return value
        return max(1, round(value * epoch_length)) if value else 0  # which alone may mean never


EVERY = Key("every", ByEpoch, [], "schedule", needed=True)  # iterations between rewires
# 0: never. A recipe that does not have it gets three quarters of its epochs (training/recipe/load).
STOP_EPOCH = Key("stop_epoch", float, 0.0, "stop", low=0.0, epochs=True, unset=True)
# By what weights are judged that are pruned together, see Rewirer.
BLOCK_SCORE = Key("block_score", str, "mean", choices=("mean", "l2"))


@dataclass(frozen=True)
class MethodRecipe:
    """What a recipe says that matters to a method."""

    rewiring: Mapping[str, Any]  # the whole table, every key with its value
    sparsity: float  # of the sparse layers at the end of training
    granularity: str  # "weight" or "kernel"
    block_size: int  # that is asked for: layers may have less
    epochs: int
    seed: int


@dataclass(frozen=True)
class PruneTarget:
    """How many weights a rewire aims at."""

    count: int
    tolerance: float | None  # share by which it may miss that and keep its threshold; None: exact


class FromRecipe:
    """What training, its report and the experiments ask of a method's class.

    A method overrides what differs. All of it is asked of the class: there may be no model yet.
    """

    RECIPE: ClassVar[tuple[Key, ...]] = ()  # the keys that the method takes
    WHOLE_KERNELS: ClassVar[bool] = False  # it keeps whole kernels whole
    BLOCKS: ClassVar[bool] = True  # it rewires blocks of output channels
    SHRINKS: ClassVar[bool] = False  # non-zeros become fewer, until model.sparsity is reached
    GLOBAL_THRESHOLD: ClassVar[bool] = False  # one for all layers, which a report plots over time
    REPORT_EVERY: ClassVar[int] = 1  # iterations in a report; 1: each rewire has its own

    @classmethod
    def recipe_arguments(cls, recipe: MethodRecipe, epoch_length: int) -> Arguments:
        """Of the constructor: `seed`, and an argument for each key of `RECIPE`.

        epoch_length: iterations of an epoch.
        """
        arguments: Arguments = {"seed": recipe.seed}
        for key in cls.RECIPE:
            value = key.convert(recipe.rewiring[key.name], epoch_length)
            if key.argument is not None and (value or not key.unset):
                arguments[key.argument or key.name] = value
        return arguments

    @classmethod
    def resolved(cls, recipe: MethodRecipe) -> dict[str, Any]:
        """The values that keys of `RECIPE` stand for which are not set, for the record of a run."""
        return {}

    @classmethod
    def check_recipe(cls, recipe: MethodRecipe) -> None:
        """Raises ValueError, naming the key, for what no single key can tell."""

    @classmethod
    def starting_sparsity(cls, recipe: MethodRecipe) -> float:
        """Of the sparse layers before the first iteration."""
        return recipe.sparsity

    @classmethod
    def prune_target(cls, recipe: MethodRecipe) -> PruneTarget | None:
        """What a report draws beside the number of pruned weights; None: nothing."""
        return None


def all_keys(methods: Iterable[type[FromRecipe]]) -> list[Key]:
    """The keys of all methods, each once, in the order of the methods.

    Raises ValueError where two methods mean different things by one name.
    """
    keys: dict[str, Key] = {}
    for method in methods:
        for key in method.RECIPE:
            known = keys.setdefault(key.name, key)
            if known.field() != key.field():
                raise ValueError(
                    f"{method.__name__}.RECIPE: key {key.name!r} differs from another method's: "
                    f"expected {known}, got {key}"
                )
    return list(keys.values())
