"""Whole models: sparsify makes their convolutions and linear layers sparse, densify undoes it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from dsr_kernels.backends.blocks import BLOCK_SIZES
from dsr_kernels.choices import check_choice, resembling
from dsr_kernels.distribution import DISTRIBUTIONS, budget, distribute, reachable, whole_blocks
from dsr_kernels.nn import SparseModule
from dsr_kernels.nn.carry_over import copy_hangings
from dsr_kernels.nn.from_dense import KEEP, DenseLayer, hang
from dsr_kernels.nn.holders import Exchange
from dsr_kernels.nn.twins import KINDS, layer_names, obstacles, obstacles_to_dense, scripted
from dsr_kernels.topology import fitting_block_size

# What the model itself does not show: which of its layers a caller excluded, and how. Kept beside
# the layers, not on them; an entry goes with its layer, and a copy of the layer has none.
_excluded: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def sparsify(
    model: nn.Module,
    sparsity: float = 0.9,
    distribution: str = "uniform",
    *,
    exclude: Iterable[str] = (),
    overrides: Mapping[str, float] | None = None,
    over: str = "converted",
    keep: str = "random",
    block_size: int = 1,
    inplace: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A model whose nn.Conv1d, nn.Conv2d and nn.Linear layers are sparse.

    The given model stays as it was. `inplace=True` changes it; the result is what is returned,
    which is another object if the model is a layer itself.

    Together the converted layers keep exactly floor((1 - sparsity) * N) of their N weights.
    `distribution` ('uniform', 'er' or 'erk', see distribution.layer_nnz) shares them out. `keep`
    says which weights are kept: 'random' ones, the largest by 'magnitude', or whole random
    'kernels', as many as each share holds. They keep the dense layers' values.

    `block_size` (1, 2, 4, 8, 16 or 32): so many consecutive output channels share their positions.
    A layer whose output channels (of each group) are no whole blocks takes the largest divisor;
    `summary` says which. Shares then are whole blocks, together no more than the budget, and
    'magnitude' is a block's mean.

    `exclude` leaves layers dense. `overrides` gives layers a sparsity of their own, outside that
    budget. Both name layers by glob ('layer4.*', or a container for all that is in it). With
    over='model', N counts the weights of all convolutions and linear layers, and the others make
    up for the layers that stay dense or have a sparsity of their own.

    Data that hangs on a layer is carried over: attributes of the layer and of its parameters,
    further parameters, buffers and submodules. Code is not: a layer with hooks of its own, of its
    weight or of its bias, with a forward of its own, or held by a function, stays dense with a
    warning, as does every layer that cannot be converted. Gradients stay behind, as in
    copy.deepcopy. nn/carry_over.py has the whole rule. Attributes of modules, lists, tuples, dicts,
    sets and other objects that hold a layer hold its twin then. An optimizer must be built anew.

    On meta the layers are on meta and have no pattern yet, only their number of non-zeros: after
    `to_empty` a checkpoint brings the pattern, or reset_parameters draws it. So there `keep` must
    be 'random', and nothing is drawn from `generator`.

    Raises ValueError for a glob that fits no layer, for a sparsity out of reach, where there is
    nothing to convert, and for a `keep` that needs weights on meta. Then nothing has changed.
    """
    check_choice(keep, "keep", KEEP)
    check_choice(over, "over", ("converted", "model"))
    if type(block_size) is not int or block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size: expected one of {BLOCK_SIZES}, got {block_size!r}")
    exclude = [exclude] if isinstance(exclude, str) else list(exclude)
    layers, excluded, surprising = _choose_layers(model, exclude, inplace)
    kept_dense = [*excluded, *surprising]
    own = _own_sparsity(layers, overrides or {}, [*layers, *kept_dense])
    shapes = [module.weight.shape for module in layers.values()]
    sizes = [_block_size(module, block_size) for module in layers.values()]
    fixed = {i: budget(shapes[i].numel(), s, sizes[i]) for i, s in own.items()}
    dense = _count(model, kept_dense) if over == "model" else None
    counts = _share_out(shapes, sparsity, distribution, fixed, dense, sizes)
    twins: dict[nn.Module, nn.Module] = {}
    for (name, module), nnz, size in zip(layers.items(), counts, sizes, strict=True):
        twin = KINDS[type(module)]
        options: dict[str, Any] = {"block_size": size, "keep": keep, "generator": generator}
        try:
            twins[module] = twin.from_dense(module, nnz=nnz, **options)
        except ValueError as error:
            raise ValueError(f"sparsify: layer {name or 'the model'!r}: {error}") from None
    sparse = _exchange(model, twins, inplace)
    _excluded.update({sparse.get_submodule(name): why for name, why in excluded.items()})
    return sparse


def densify(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """A model with a plain layer of torch.nn for every sparse one: O(dense size) memory.

    The given model stays as it was, unless `inplace=True`. What hangs on the layers goes along, or
    the conversion is refused, by the rule of sparsify. Layers that share their weight_values and
    have the same pattern share their dense weight. On meta the result is on meta.

    Raises TypeError that names each layer that cannot be converted, before anything changed.
    """
    sparse = {
        name: module for name, module in model.named_modules() if isinstance(module, SparseModule)
    }
    reasons = obstacles_to_dense(model, sparse, not inplace)
    if reasons:
        listed = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in reasons.items())
        raise TypeError(f"densify: these layers cannot be made dense: {listed}")
    twins: dict[nn.Module, nn.Module] = {}
    weights: dict[nn.Parameter, nn.Parameter | None] = {}
    for module in sparse.values():
        twins[module] = twin = module.dense_module()
        if isinstance(twin, DenseLayer):
            own = twin._parameters["weight"]
            twin._parameters["weight"] = weights.setdefault(module.weight_values, own)
    return _exchange(model, twins, inplace)


def _choose_layers(
    model: nn.Module, exclude: list[str], inplace: bool
) -> tuple[dict[str, DenseLayer], dict[str, str], dict[str, str]]:
    """By name: the layers to convert, and why the others are excluded or have to stay dense."""
    names = layer_names(model)
    _check_globs("exclude", exclude, [name for group in names.values() for name in group])
    found = obstacles(model, names, not inplace)
    layers, excluded = {}, {}
    surprising = scripted(model, KINDS)
    for module, aliases in names.items():
        glob = next((g for g in exclude if any(_fits(g, alias) for alias in aliases)), None)
        if glob is not None:
            excluded[aliases[0]] = f"excluded by {glob!r}"
        elif module in found:
            surprising[aliases[0]] = found[module]
        else:
            layers[aliases[0]] = module
    listed = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in surprising.items())
    if not layers:
        *others, last = (f"nn.{kind.__name__}" for kind in KINDS)
        kinds = f"{', '.join(others)} or {last}"
        raise ValueError(
            f"sparsify: the model has no {kinds} to convert" + (listed and f": {listed}")
        )
    if surprising:
        warnings.warn(f"sparsify: these layers stay dense: {listed}", stacklevel=3)
    return layers, excluded, surprising


def why_dense(model: nn.Module) -> dict[nn.Module, str]:
    """Why each convolution or linear layer of `model` is dense.

    Read off the model; that a layer was excluded is known as long as the very layer lives.
    """
    names = layer_names(model)
    partly_sparse = any(isinstance(module, SparseModule) for module in model.modules())
    unknown = dict.fromkeys(names, "left dense" if partly_sparse else "")
    excluded = {module: _excluded[module] for module in names if module in _excluded}
    return unknown | obstacles(model, names) | excluded


def _block_size(layer: DenseLayer, wanted: int) -> int:
    """The largest block size of at most `wanted` that its output channels are whole blocks of."""
    return fitting_block_size(layer.weight.shape, wanted, getattr(layer, "groups", 1))


def _own_sparsity(
    layers: Mapping[str, nn.Module], overrides: Mapping[str, float], names: list[str]
) -> dict[int, float]:
    """Layer index -> sparsity, for the layers that an override names."""
    _check_globs("overrides", overrides, names)
    own: dict[int, float] = {}
    for index, name in enumerate(layers):
        found = {glob: s for glob, s in overrides.items() if _fits(glob, name)}
        if len(set(found.values())) > 1:
            raise ValueError(f"overrides: layer {name} is given several sparsities: {found}")
        if found:
            own[index] = next(iter(found.values()))
    return own


def _check_globs(argument: str, globs: Iterable[str], names: list[str]) -> None:
    for glob in globs:
        if not any(_fits(glob, name) for name in names):
            close = resembling(glob, names, 3, 0.3) or names[:3]
            raise ValueError(
                f"{argument}: {glob!r} fits no convolution or linear layer; "
                f"the closest names are {', '.join(close)}"
            )


def _fits(glob: str, name: str) -> bool:
    """Whether the glob fits a layer's name or that of a container it is in."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), glob) for end in range(1, len(parts) + 1))


def _share_out(
    shapes: list[torch.Size],
    sparsity: float,
    distribution: str,
    fixed: Mapping[int, int],
    dense: int | None,
    block_sizes: list[int],
) -> list[int]:
    """Non-zeros of each layer, in whole blocks.

    `fixed` gives those of some layers. `dense` counts the weights that stay dense and belong to the
    budget; if it is None, the budget is that of the layers that are not `fixed`.
    """
    check_choice(distribution, "distribution", DISTRIBUTIONS)
    free = [i for i in range(len(shapes)) if i not in fixed]
    sizes = [shapes[i].numel() for i in free]
    total = budget(sum(sizes), sparsity) if free else 0
    if dense is not None:
        taken = dense + sum(fixed.values())
        every = dense + sum(shape.numel() for shape in shapes)
        total = budget(every, sparsity) - taken
        least = sum(block_sizes[i] for i in free)
        if not least <= total <= sum(sizes):
            raise ValueError(
                f"sparsity: {sparsity} of all {every} weights cannot be met: {taken} of them stay "
                "in layers that are dense or have a sparsity of their own; reachable: "
                f"{reachable(taken + least, taken + sum(sizes), every)}"
            )
    shared = distribute([shapes[i] for i in free], total, distribution) if free else []
    shared = whole_blocks(shared, sizes, [block_sizes[i] for i in free])
    counts = dict(fixed) | dict(zip(free, shared, strict=True))
    return [counts[i] for i in range(len(shapes))]


def _count(model: nn.Module, names: Iterable[str]) -> int:
    """The weights of the layers that stay dense."""
    count = 0
    for name in names:
        weight: Any = model.get_submodule(name).weight
        if isinstance(weight, nn.UninitializedParameter):
            raise ValueError(
                f"over: 'model' counts the weights of {name}, which is lazy and has none yet; "
                "run a forward pass first"
            )
        count += weight.numel()
    return count


def _exchange(model: nn.Module, twins: Mapping[nn.Module, nn.Module], inplace: bool) -> nn.Module:
    """Puts each layer's twin wherever the model, or a copy of it, has the layer."""
    memo: dict[int, Any] = {id(layer): twin for layer, twin in twins.items()}

    def take(value: Any) -> Any:
        return value if inplace else copy.deepcopy(value, memo)

    changed = Exchange(twins)(model) if inplace else take(model)
    for layer, twin in twins.items():
        if type(layer) in KINDS or type(twin) in KINDS:  # else dense_module is the user's own
            hang(layer, twin, take)
    for parameter in model.parameters() if not inplace else ():
        if id(parameter) in memo:
            copy_hangings(parameter, memo[id(parameter)], take)
    return changed
