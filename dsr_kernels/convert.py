"""Whole models: sparsify(model) makes convolutions and linear layers sparse, densify undoes it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import nn

from .dense import METHODS, why_not
from .nn import SparseConv2d, SparseLinear, SparseModule
from .topology import apportion, budget, layer_nnz

KINDS: dict[type[nn.Module], type[SparseModule]] = {
    nn.Conv2d: SparseConv2d,
    nn.Linear: SparseLinear,
}
# Containers of torch.nn whose own code reads the weights of their linear layers.
READS_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def sparsify(
    model: nn.Module,
    sparsity: float = 0.9,
    distribution: str = "uniform",
    *,
    exclude: Iterable[str] = (),
    overrides: Mapping[str, float] | None = None,
    keep: str = "random",
    inplace: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A model whose nn.Conv2d and nn.Linear layers are sparse; the given one is left as it was.

    Together the converted layers keep exactly floor((1 - sparsity) * N) of their N weights, shared
    out by `distribution` ('uniform', 'er' or 'erk', see topology.layer_nnz) and chosen at 'random'
    or by 'magnitude'; they keep the dense layers' values there. `exclude` leaves layers dense and
    `overrides` gives layers a sparsity of their own, outside that budget: both name layers by glob
    ('layer4.*', or a container for all that is in it). A glob that fits no layer is an error; a
    layer that cannot be converted stays dense with a warning. `inplace=True` changes the given
    model (the result is what is returned: another object if the model is itself a layer).
    """
    if keep not in METHODS:
        raise ValueError(f"keep: expected one of {METHODS}, got {keep!r}")
    exclude = [exclude] if isinstance(exclude, str) else list(exclude)
    model = model if inplace else copy.deepcopy(model)
    layers, kept_dense = _choose_layers(model, exclude)
    own = _own_sparsity(layers, overrides or {}, [*layers, *kept_dense])
    if not layers:
        raise ValueError("sparsify: the model has no nn.Conv2d or nn.Linear to convert")
    shapes = [module.weight.shape for module in layers.values()]
    fixed = {i: budget(shapes[i].numel(), s) for i, s in own.items()}
    counts = _share_out(shapes, sparsity, distribution, fixed)
    replacements = {}
    for module, nnz in zip(layers.values(), counts, strict=True):
        twin = KINDS[type(module)]
        replacements[module] = twin.from_dense(module, nnz=nnz, method=keep, generator=generator)
    modules = dict(model.named_modules())
    for name, reason in kept_dense.items():
        modules[name].kept_dense = reason  # for summary()
    return _replace(model, replacements)


def densify(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """A model with a plain nn.Conv2d or nn.Linear for every sparse layer: O(dense size) memory."""
    model = model if inplace else copy.deepcopy(model)
    sparse = [module for module in model.modules() if isinstance(module, SparseModule)]
    return _replace(model, {module: module.dense_module() for module in sparse})


def _choose_layers(
    model: nn.Module, exclude: list[str]
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers to convert by name, and why each other convolution or linear layer stays dense."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, tuple(KINDS)):
            names.setdefault(module, []).append(name)
    _check_globs("exclude", exclude, [name for group in names.values() for name in group])
    readers = [m for m in model.modules() if isinstance(m, READS_WEIGHTS)]
    read = {child for reader in readers for child in reader.children()}
    layers, kept_dense, surprising = {}, {}, {}
    for module, aliases in names.items():
        kind = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
        glob = next((g for g in exclude if any(_fits(g, alias) for alias in aliases)), None)
        if glob is not None:
            kept_dense[aliases[0]] = f"excluded by {glob!r}"
        elif reason := _tied(model, module) or why_not(module, kind):
            surprising[aliases[0]] = reason
        elif module in read:
            surprising[aliases[0]] = "the module it is in reads its weight directly"
        else:
            layers[aliases[0]] = module
    if surprising:
        listed = "; ".join(f"{name}: {reason}" for name, reason in surprising.items())
        warnings.warn(f"sparsify: these layers stay dense: {listed}", stacklevel=3)
    return layers, kept_dense | surprising


def _tied(model: nn.Module, module: nn.Module) -> str | None:
    weight = module._parameters.get("weight")
    for name, other in model.named_modules():
        if other is not module and any(p is weight for p in other._parameters.values()):
            return None if weight is None else f"its weight is shared with {name or 'the model'}"
    return None


def _own_sparsity(
    layers: Mapping[str, nn.Module], overrides: Mapping[str, float], names: list[str]
) -> dict[int, float]:
    """Layer index -> sparsity, for the layers an override names."""
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
            close = get_close_matches(glob, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(
                f"{argument}: {glob!r} fits no convolution or linear layer; "
                f"the closest names are {', '.join(close)}"
            )


def _fits(glob: str, name: str) -> bool:
    """Whether the glob fits a layer's name or that of a container it is in."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), glob) for end in range(1, len(parts) + 1))


def _share_out(
    shapes: list[torch.Size], sparsity: float, distribution: str, fixed: Mapping[int, int]
) -> list[int]:
    """layer_nnz, but with an exact total for the uniform distribution too."""
    counts = layer_nnz(shapes, sparsity, distribution, fixed)
    free = [i for i in range(len(shapes)) if i not in fixed]
    if distribution == "uniform" and free:
        sizes = [shapes[i].numel() for i in free]
        for i, count in zip(
            free, apportion(budget(sum(sizes), sparsity), sizes, sizes), strict=True
        ):
            counts[i] = count
    return counts


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put each new module wherever the old one is, also where one is used several times."""
    if model in replacements:
        return replacements[model]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in replacements:
                parent._modules[name] = replacements[child]
    return model
