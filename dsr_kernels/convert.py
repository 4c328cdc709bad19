"""Whole models: sparsify(model) makes convolutions and linear layers sparse, densify undoes it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

from dsr_kernels.choices import check_choice, resembling
from dsr_kernels.distribution import DISTRIBUTIONS, budget, distribute, reachable
from dsr_kernels.nn import SparseConv2d, SparseLinear, SparseModule
from dsr_kernels.nn.from_dense import METHODS, why_not

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
    over: str = "converted",
    keep: str = "random",
    inplace: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A model whose nn.Conv2d and nn.Linear layers are sparse; the given one is left as it was.

    Together the converted layers keep exactly floor((1 - sparsity) * N) of their N weights, shared
    out by `distribution` ('uniform', 'er' or 'erk', see distribution.layer_nnz) and chosen at
    'random' or by 'magnitude'; they keep the dense layers' values there. keep='kernels' takes whole
    kernels at random, as many as the shares hold. `exclude` leaves layers dense and `overrides`
    gives layers a sparsity of their own, outside that budget: both name layers by glob ('layer4.*',
    or a container for all that is in it). With over='model', N counts the weights of all
    convolutions and linear layers, and the layers that stay dense or have a sparsity of their own
    are made up for by the others. A glob that fits no layer is an error, and so is a sparsity out
    of reach; a layer that cannot be converted stays dense with a warning. `inplace=True` changes
    the given model (the result is what is returned: another object if the model is a layer itself).
    """
    check_choice(keep, "keep", METHODS)
    check_choice(over, "over", ("converted", "model"))
    exclude = [exclude] if isinstance(exclude, str) else list(exclude)
    model = model if inplace else copy.deepcopy(model)
    layers, kept_dense = _choose_layers(model, exclude)
    own = _own_sparsity(layers, overrides or {}, [*layers, *kept_dense])
    if not layers:
        raise ValueError("sparsify: the model has no nn.Conv2d or nn.Linear to convert")
    shapes = [module.weight.shape for module in layers.values()]
    fixed = {i: budget(shapes[i].numel(), s) for i, s in own.items()}
    modules = dict(model.named_modules())
    dense = sum(modules[name].weight.numel() for name in kept_dense) if over == "model" else None
    counts = _share_out(shapes, sparsity, distribution, fixed, dense)
    replacements = {}
    for module, nnz in zip(layers.values(), counts, strict=True):
        twin = KINDS[type(module)]
        replacements[module] = twin.from_dense(module, nnz=nnz, method=keep, generator=generator)
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
    """Non-zeros of each layer. `dense`: weights that stay dense and count with the others; if None,
    the sparsity is that of the layers not `fixed` alone.
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
            if child in replacements:
                parent._modules[name] = replacements[child]
    return model
