"""Whole models: sparsify makes their convolutions and linear layers sparse, densify undoes it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from weakref import WeakKeyDictionary

import torch
from torch import nn

from dsr_kernels.choices import check_choice, resembling
from dsr_kernels.distribution import DISTRIBUTIONS, budget, distribute, reachable
from dsr_kernels.nn import SparseConv1d, SparseConv2d, SparseLinear, SparseModule
from dsr_kernels.nn.from_dense import KEEP, DenseLayer, why_not

KINDS: dict[type[DenseLayer], type[SparseModule]] = {
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
    nn.Linear: SparseLinear,
}
# Containers of torch.nn whose own code reads the weights of their linear layers.
READS_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
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

    `exclude` leaves layers dense. `overrides` gives layers a sparsity of their own, outside that
    budget. Both name layers by glob ('layer4.*', or a container for all that is in it). With
    over='model', N counts the weights of all convolutions and linear layers, and the others make
    up for the layers that stay dense or have a sparsity of their own.

    A layer that cannot be converted stays dense with a warning. Raises ValueError for a glob that
    fits no layer, for a sparsity out of reach, and where there is nothing to convert.
    """
    check_choice(keep, "keep", KEEP)
    check_choice(over, "over", ("converted", "model"))
    exclude = [exclude] if isinstance(exclude, str) else list(exclude)
    model = model if inplace else copy.deepcopy(model)
    layers, kept_dense = _choose_layers(model, exclude)
    own = _own_sparsity(layers, overrides or {}, [*layers, *kept_dense])
    if not layers:
        *others, last = (f"nn.{kind.__name__}" for kind in KINDS)
        raise ValueError(f"sparsify: the model has no {', '.join(others)} or {last} to convert")
    shapes = [module.weight.shape for module in layers.values()]
    fixed = {i: budget(shapes[i].numel(), s) for i, s in own.items()}
    modules = dict(model.named_modules())
    dense = sum(modules[name].weight.numel() for name in kept_dense) if over == "model" else None
    counts = _share_out(shapes, sparsity, distribution, fixed, dense)
    replacements: dict[nn.Module, nn.Module] = {}
    for module, nnz in zip(layers.values(), counts, strict=True):
        twin = KINDS[type(module)]
        replacements[module] = twin.from_dense(module, nnz=nnz, keep=keep, generator=generator)
    return _replace(model, replacements)


def densify(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """A model with a plain layer of torch.nn for every sparse one: O(dense size) memory."""
    model = model if inplace else copy.deepcopy(model)
    sparse = [module for module in model.modules() if isinstance(module, SparseModule)]
    return _replace(model, {module: module.dense_module() for module in sparse})


def _choose_layers(
    model: nn.Module, exclude: list[str]
) -> tuple[dict[str, DenseLayer], dict[str, str]]:
    """The layers to convert by name, and why each other convolution or linear layer stays dense."""
    names = _layer_names(model)
    _check_globs("exclude", exclude, [name for group in names.values() for name in group])
    obstacles = _obstacles(model, names)
    layers, excluded, surprising = {}, {}, {}
    for module, aliases in names.items():
        glob = next((g for g in exclude if any(_fits(g, alias) for alias in aliases)), None)
        if glob is not None:
            excluded[aliases[0]] = _excluded[module] = f"excluded by {glob!r}"
        elif module in obstacles:
            surprising[aliases[0]] = obstacles[module]
        else:
            layers[aliases[0]] = module
    if surprising:
        listed = "; ".join(f"{name}: {reason}" for name, reason in surprising.items())
        warnings.warn(f"sparsify: these layers stay dense: {listed}", stacklevel=3)
    return layers, excluded | surprising


def why_dense(model: nn.Module) -> dict[nn.Module, str]:
    """Why each convolution or linear layer of `model` is dense.

    Read off the model; that a layer was excluded is known as long as the very layer lives.
    """
    names = _layer_names(model)
    partly_sparse = any(isinstance(module, SparseModule) for module in model.modules())
    unknown = dict.fromkeys(names, "left dense" if partly_sparse else "")
    excluded = {module: _excluded[module] for module in names if module in _excluded}
    return unknown | _obstacles(model, names) | excluded


def _layer_names(model: nn.Module) -> dict[DenseLayer, list[str]]:
    """The dense convolutions and linear layers, each with all of its names."""
    names: dict[DenseLayer, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, DenseLayer):
            names.setdefault(module, []).append(name)
    return names


def _obstacles(model: nn.Module, layers: Iterable[nn.Module]) -> dict[nn.Module, str]:
    """Why some of `layers` cannot be converted."""
    holders: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
    read: set[nn.Module] = set()
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(parameter, []).append((name or "the model", module))
        if isinstance(module, READS_WEIGHTS):
            read.update(module.children())
    found = {}
    for module in layers:
        kind = next(kind for kind in KINDS if isinstance(module, kind))
        weight = module._parameters.get("weight")
        sharing = [] if weight is None else holders[weight]
        sharer = next((name for name, other in sharing if other is not module), None)
        if sharer is not None:
            found[module] = f"its weight is shared with {sharer}"
        elif reason := why_not(module, kind):
            found[module] = reason
        elif module in read:
            found[module] = "the module it is in reads its weight directly"
    return found


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
) -> list[int]:
    """Non-zeros of each layer.

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
        if not len(free) <= total <= sum(sizes):
            raise ValueError(
                f"sparsity: {sparsity} of all {every} weights cannot be met: {taken} of them stay "
                "in layers that are dense or have a sparsity of their own; reachable: "
                f"{reachable(taken + len(free), taken + sum(sizes), every)}"
            )
    shared = distribute([shapes[i] for i in free], total, distribution) if free else []
    counts = dict(fixed) | dict(zip(free, shared, strict=True))
    return [counts[i] for i in range(len(shapes))]


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put each new module wherever the old one is, also where one is used several times."""
    if model in replacements:
        return replacements[model]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    return model
