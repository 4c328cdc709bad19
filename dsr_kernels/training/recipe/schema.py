"""What a recipe holds: dataclasses whose fields say the type and the limits of every value.

Recipe files, ``--set`` and the copy that a run keeps all go through `convert`, which checks them.
"""

from __future__ import annotations

# ruff: noqa: RUF009 (`setting` is dataclasses.field with limits)
import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from dsr_kernels.backends.blocks import BLOCK_SIZES
from dsr_kernels.choices import unknown
from dsr_kernels.convert.presets import PRESETS
from dsr_kernels.distribution import DISTRIBUTIONS
from dsr_kernels.errors import UsageError, shown
from dsr_kernels.rewiring import METHODS
from dsr_kernels.rewiring.recipe_keys import ByEpoch as Schedule
from dsr_kernels.rewiring.recipe_keys import all_keys as all_method_keys
from dsr_kernels.training.recipe import limits as limits_of
from dsr_kernels.training.recipe.tables import Names, Table, as_names, as_table

DENSE = ("dense", "thin_dense")  # methods whose model has no sparse layers
METHOD_NAMES = (*METHODS, *DENSE)
# Limits of every number, unless its field has narrower ones. Torch takes most of them as float32,
# and Adam's first step is ten times the learning rate.
MOST_INT, MOST_FLOAT = 2**63 - 1, 1e37
MOST_EPOCHS = 2**31 - 1  # of at most 2^32 iterations each: an int64 counts them
MOST_ITERATIONS = 2**53  # in a schedule, whose numbers are floats: these are exact
MODELS = ("wrn28", "lenet300", "resnet18", "resnet50")  # of this package, in any width
DATA_SETS = ("digits", "fashion_mnist", "mnist", "cifar10", "imagenet", "folder")


def setting(
    default: Any = dataclasses.MISSING,
    *,
    choices: Collection[str] | None = None,
    libraries: Collection[str] | None = None,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
) -> Any:
    """A recipe field with its limits: ``low <= value``, ``value <= high``, ``value < below``.

    In a schedule they are those of its values. A field with `libraries` may also name something of
    theirs, or a user's own function, see references.py.
    """
    limits = {"choices": choices, "libraries": libraries, "low": low, "high": high, "below": below}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=limits)
    return field(default=default, metadata=limits)


@dataclass(kw_only=True)
class Model:
    name: str = setting(choices=MODELS, libraries=("timm", "torchvision"))
    arguments: Table = setting({})  # of a model that is none of MODELS
    sparsity: float = setting(0.9, low=0.0, below=1.0)
    # What stays dense. This package's models: "", the paper's choice. Others: "" is "safe".
    preset: str = setting("", choices=("", *PRESETS))
    exclude: Names = setting([])  # globs of further layers that stay dense
    overrides: Table = setting({})  # sparsities of layers that are not `sparsity`, by glob
    keep: str = setting("random", choices=("random", "magnitude"))  # weights of a model not of ours
    # Multiplies the channels. 0: 2 for wrn28, 1 for others, and for thin_dense whatever gives it
    # as many parameters as the sparse model.
    width: float = setting(0.0, low=0.0, high=1000.0)
    distribution: str = setting("uniform", choices=DISTRIBUTIONS)  # of the non-zeros at the start
    granularity: str = setting("weight", choices=("weight", "kernel"))  # "kernel": of some methods
    # So many consecutive output channels share their positions.
    block_size: int = setting(1, choices=BLOCK_SIZES)
    memory_format: str = setting("contiguous", choices=("contiguous", "channels_last"))
    # Of a sparse model: batch norm, ReLU and additions inside its convolutions (dsr_kernels.fuse).
    fused: bool = setting(True)


@dataclass(kw_only=True)
class Data:
    name: str = setting(choices=DATA_SETS, libraries=("torchvision",))
    arguments: Table = setting({})  # of data that are none of DATA_SETS
    classes: int = setting(0, low=0)  # of data that do not say it themselves; 0: they do
    validation: int = setting(low=0)  # images held out of the training set, stratified by class
    augment: str = setting("none", choices=("none", "crop_flip", "crop", "resized_crop_flip"))
    pad: int = setting(4, low=0)  # reflection padding before the random crop
    # digits: the side to upsample 8x8 to, 0: as stored. Pictures: the side of the crops, 0: 224.
    image_size: int = setting(0, low=0)
    # Of pictures and a user's data: processes that read them; 0: the run's own.
    workers: int = setting(4, low=0, high=1024)


@dataclass(kw_only=True)
class Optimizer:
    lr: Schedule = setting()
    name: str = setting("sgd", choices=("sgd", "adam", "adamw"))
    momentum: float = setting(0.9, low=0.0, below=1.0)
    nesterov: bool = setting(True)
    weight_decay: float = setting(0.0, low=0.0)  # on every parameter
    l1: float = setting(0.0, low=0.0)  # on the weights of convolutions and fully connected layers


@dataclass(kw_only=True)
class Training:
    epochs: int = setting(low=1, high=MOST_EPOCHS)
    batch_size: int = setting(low=2)
    eval_batch_size: int = setting(500, low=1)
    eval_test_every: int = setting(0, low=0)  # epochs between tests; 0: at the end only
    # Of activations, by autocast. Weights and their optimizer state are float32 in any case.
    precision: str = setting("float32", choices=("float32", "bfloat16", "float16"))
    # One process on a GPU replays its steps from a CUDA graph, with the same bits.
    cuda_graph: bool = setting(True)


def _rewiring() -> type:
    """The table [rewiring]: the keys of all methods (their `RECIPE`), and training's own."""
    keys = []
    for key in all_method_keys(METHODS.values()):
        high = MOST_ITERATIONS if key.kind == Schedule else MOST_EPOCHS if key.epochs else None
        spec = setting(key.default, choices=key.choices, low=key.low, high=high, below=key.below)
        keys.append((key.name, key.kind, spec))
    keys.append(("record_exploration", bool, setting(False)))  # a bit for each position ever active
    namespace = {"__module__": __name__, "__doc__": "What a method may be set; each takes its own."}
    return dataclasses.make_dataclass("Rewiring", keys, kw_only=True, namespace=namespace)


Rewiring = _rewiring()


@dataclass(kw_only=True)
class Checkpoint:
    every_seconds: float = setting(120.0, low=0.0)  # 0: not by time
    every_iterations: int = setting(0, low=0)  # 0: not by count
    keep: int = setting(2, low=1)


@dataclass(kw_only=True)
class Distributed:
    """How several processes train, as torchrun starts them; one alone needs none of it."""

    sync_batch_norm: bool = setting(False)  # statistics of the whole batch; on GPUs only
    bucket_mb: float = setting(25.0, low=0.001)  # gradients that are averaged at a time
    timeout_seconds: float = setting(600.0, low=1.0, high=1e6)  # one waits so long for another


@dataclass(kw_only=True)
class Tracking:
    """Where numbers go beside CSV files and TensorBoard: "wandb", "mlflow" or a user's function."""

    to: Names = setting([])
    project: str = setting("")  # of wandb, experiment of mlflow; "": their own default


@dataclass(kw_only=True)
class Start:
    """What a run begins with instead of its own initialisation; see training/take_over.py."""

    run: str = setting("")  # folder of a finished run; "": none
    take: str = setting("weights", choices=("weights", "structure", "structure_and_init"))


@dataclass(kw_only=True)
class Recipe:
    """A complete recipe.

    `method` is one of `dsr_kernels.rewiring`, "dense" (the dense twin) or "thin_dense" (a dense
    model so narrow that it has no more parameters than the sparse model).
    """

    name: str = setting("")
    description: str = setting("")
    method: str = setting("dsr", choices=METHOD_NAMES)
    seed: int = setting(0, low=0, high=2**63 - 1)
    model: Model = setting()
    data: Data = setting()
    optimizer: Optimizer = setting()
    training: Training = setting()
    rewiring: Rewiring = field(default_factory=Rewiring)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    start: Start = field(default_factory=Start)
    distributed: Distributed = field(default_factory=Distributed)
    tracking: Tracking = field(default_factory=Tracking)


def convert(kind: type, table: Any, path: str = "") -> Any:
    """The dataclass `kind` of a plain table. Raises UsageError, which names the dotted key."""
    if not isinstance(table, dict):
        raise UsageError(f"recipe: expected a table [{path}], got {shown(table)}")
    hints, known = get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    for key in table:
        if key not in known:
            raise UsageError(f"recipe: unknown key {unknown(_join(path, key), all_keys())}")
    values = {}
    for name, spec in known.items():
        key = _join(path, name)
        if name in table:
            values[name] = _value(hints[name], table[name], key, spec.metadata)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise UsageError(f"recipe: {key} is missing")
    return kind(**values)


def _value(hint: Any, value: Any, key: str, limits: Mapping[str, Any]) -> Any:
    """`value` as the type `hint`, within its limits."""
    if dataclasses.is_dataclass(hint):
        return convert(hint, value, key)
    if hint == Schedule:
        return _schedule(value, key, limits.get("high") or MOST_FLOAT)
    if hint == Table:
        return as_table(value, key)
    if hint == Names:
        return as_names(value, key)
    if type(value) is not hint and not (hint is float and type(value) is int):
        raise UsageError(f"recipe: {key}: expected {_words(hint)}, got {shown(value)}")
    if hint is str:
        limits_of.check_text(value, key)
    if hint is float and not math.isfinite(value):
        raise UsageError(f"recipe: {key}: expected a finite number, got {value!r}")
    if limits.get("choices") and value not in limits["choices"]:
        if hint is not str:
            raise UsageError(
                f"recipe: {key}: expected one of {limits['choices']}, got {shown(value)}"
            )
        limits_of.check_choice(value, key, limits)
    if hint in (int, float):
        limits_of.check_number(value, key, MOST_INT if hint is int else MOST_FLOAT, limits)
    return float(value) if hint is float else value


def _schedule(value: Any, key: str, most: float) -> Schedule:
    """A schedule of values up to `most`.

    A number is one value throughout, a list has pairs from epoch 0 on, in order.
    """
    if type(value) in (int, float):
        value = [[0, value]]
    shape = "a number or [[0, value], [epoch, value], ...] with rising epochs and positive values"
    try:
        pairs = [(float(epoch), float(number)) for epoch, number in value]
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"recipe: {key}: expected {shape}, got {shown(value)}") from None
    epochs = [epoch for epoch, _ in pairs]
    rising = all(a < b for a, b in itertools.pairwise(epochs))
    if not rising or any(epochs[:1]) or not all(0 < v < math.inf for _, v in pairs):
        raise UsageError(f"recipe: {key}: expected {shape}, got {shown(value)}")
    if max(epochs, default=0.0) > MOST_EPOCHS or any(number > most for _, number in pairs):
        raise UsageError(
            f"recipe: {key}: expected epochs up to {MOST_EPOCHS} and values up to {most}, got "
            f"{shown(value)}"
        )
    return pairs


def at(schedule: Schedule, epoch: float) -> float:
    """The value at `epoch`, which may be a fraction."""
    return [value for start, value in schedule if start <= epoch][-1]


def _words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return names[hint]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def all_keys(kind: type = Recipe, path: str = "") -> list[str]:
    """Every dotted key of the schema."""
    keys = []
    for name, hint in get_type_hints(kind).items():
        key = _join(path, name)
        keys += all_keys(hint, key) if dataclasses.is_dataclass(hint) else [key]
    return keys


def is_table(key: str) -> bool:
    """Whether the value of a dotted key is itself a table, of the user's own names."""
    return key in all_keys() and hint_of(key) == Table


def hint_of(key: str) -> Any:
    """The type of a dotted key. Raises UsageError, with the closest key, where there is none."""
    kind: Any = Recipe
    for part in key.split("."):
        hints = get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if part not in hints:
            raise UsageError(f"--set: unknown key {unknown(key, all_keys())}")
        kind = hints[part]
    if dataclasses.is_dataclass(kind):
        raise UsageError(f"--set: {key} is a table: set one of {', '.join(all_keys(kind, key))}")
    return kind
