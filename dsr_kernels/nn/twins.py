"""Which layers of torch.nn have a sparse twin, and why some layer of a model cannot become its."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dsr_kernels.nn.from_dense import DenseLayer, why_not, why_not_dense
from dsr_kernels.nn.holders import unreachable
from dsr_kernels.nn.layers import SparseConv1d, SparseConv2d, SparseLinear
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.nn.transposed import (
    SparseTransposed,
    is_transposed,
    why_not_conv1d,
    why_not_transposed,
)

KINDS: dict[type[DenseLayer], type[SparseModule]] = {
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
    nn.Linear: SparseLinear,
}
# Layers of torch.nn that multiply by weights and have no sparse twin, but for those above.
WITHOUT_TWIN = (
    *(nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.MultiheadAttention, nn.Bilinear, nn.RNNBase, nn.RNNCellBase),
)
# Containers of torch.nn whose own code reads the weights of their linear layers. Encoders do so on
# a fast path alone, which sparsify turns off.
READS_WEIGHTS = (nn.MultiheadAttention,)
# Wrappers that keep hold of the parameters of all that is in them, by name: importing is slow.
HOLD_PARAMETERS = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


def layer_names(model: nn.Module) -> dict[DenseLayer, list[str]]:
    """The dense convolutions and linear layers, each with all of its names."""
    names: dict[DenseLayer, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, DenseLayer) or is_transposed(module):
            names.setdefault(module, []).append(name)
    return names


def without_twin(model: nn.Module) -> dict[str, str]:
    """By name: the layers that no sparse layer stands for, and this in words."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            found[name] = "its input projections are in no layer that could be sparse"
        elif isinstance(module, WITHOUT_TWIN):
            kind = next(k for k in type(module).__mro__ if k.__module__.startswith("torch.nn"))
            found[name] = f"nn.{kind.__name__} has no sparse layer"
    return found


def twin_class(layer: nn.Module) -> type[SparseModule]:
    """The sparse layer that stands for a dense one."""
    return SparseTransposed if is_transposed(layer) else KINDS[type(layer)]  # type: ignore[index]


def _why_not(layer: nn.Module) -> str | None:
    if is_transposed(layer):
        return why_not_transposed(layer)
    kind = next(kind for kind in KINDS if isinstance(layer, kind))
    return why_not(layer, kind, KINDS[kind])


def _why_not_dense(layer: SparseModule) -> str | None:
    if isinstance(layer, SparseTransposed):
        return why_not_conv1d(layer)
    kind = next((kind for kind, sparse in KINDS.items() if isinstance(layer, sparse)), None)
    return None if kind is None else why_not_dense(layer, kind)


def obstacles(
    model: nn.Module, layers: Iterable[DenseLayer], copies: bool = True
) -> dict[nn.Module, str]:
    """Why some of `layers` cannot be made sparse in a copy of `model` (`copies`) or in place."""
    holders = _holders(model)
    around = _around(model)
    found: dict[nn.Module, str] = {}
    free: dict[nn.Module, Tensor] = {}
    for module in layers:
        weight = module._parameters.get("weight")
        sharing = [] if weight is None else holders[weight]
        sharer = next((name for name, other in sharing if other is not module), None)
        if sharer is not None:
            found[module] = f"its weight is shared with {sharer}"
        elif reason := around.get(module) or _why_not(module):
            found[module] = reason
        else:
            free[module] = module.weight
    return found | unreachable(model, free, copies)


def obstacles_to_dense(
    model: nn.Module, layers: Mapping[str, SparseModule], copies: bool
) -> dict[str, str]:
    """Why some of `layers` (by name) cannot be made dense in a copy of `model` or in place."""
    holders = _holders(model)
    found = _around(model)
    free: dict[nn.Module, Tensor] = {}
    for module in layers.values():
        reason = _why_not_dense(module)
        values = module._parameters.get("weight_values")
        for name, other in [] if values is None else holders[values]:
            if other is not module and not _same_weight(module, other):
                reason = reason or f"its weight_values are shared with {name}, its pattern is not"
        if reason is not None:
            found.setdefault(module, reason)
        elif values is not None:
            free[module] = values
    found = unreachable(model, free, copies) | found
    reasons = {name: found[module] for name, module in layers.items() if module in found}
    return reasons | scripted(model, KINDS.values())


def scripted(model: nn.Module, kinds: Iterable[type[nn.Module]]) -> dict[str, str]:
    """The layers of these kinds that torch.jit has compiled, by name, and that this is why not."""
    names = {kind.__name__ for kind in kinds}
    return {
        name: "torch.jit has compiled it; convert first, compile then"
        for name, module in model.named_modules()
        if isinstance(module, torch.jit.ScriptModule) and module.original_name in names
    }


def _holders(model: nn.Module) -> dict[nn.Parameter, list[tuple[str, nn.Module]]]:
    """The modules that have each parameter, with their names."""
    holders: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(parameter, []).append((name or "the model", module))
    return holders


def _around(model: nn.Module) -> dict[nn.Module, str]:
    """The modules that cannot be exchanged because of what they are in, and why."""
    found: dict[nn.Module, str] = {}
    for module in model.modules():
        names = {kind.__name__ for kind in type(module).__mro__}
        for name in names.intersection(HOLD_PARAMETERS):
            reason = f"{name} holds its parameters; convert the model first, wrap it then"
            found.update(dict.fromkeys(module.modules(), reason))
        if "OptimizedModule" in names:
            reason = "torch.compile holds it; convert it first, compile it then"
            found.update(dict.fromkeys(module.children(), reason))
        if isinstance(module, READS_WEIGHTS):
            reason = "the module it is in reads its weight directly"
            found.update(dict.fromkeys(module.children(), reason))
    return found


def _same_weight(one: SparseModule, other: nn.Module) -> bool:
    """Whether two layers that share their weight_values have the same dense weight."""
    if not isinstance(other, SparseModule) or one.weight_shape != other.weight_shape:
        return False
    if one.block_size != other.block_size:
        return False
    if isinstance(one, SparseTransposed) != isinstance(other, SparseTransposed):
        return False
    pairs = ((one.crow_indices, other.crow_indices), (one.col_indices, other.col_indices))
    return all(a is b or (not a.is_meta and torch.equal(a, b)) for a, b in pairs)


def without_weights(layer: SparseModule) -> int:
    """The output channels that hold no weight: nothing reaches them but the bias. 0 on meta."""
    if layer.crow_indices.is_meta:
        return 0
    return int((layer.crow_indices.diff() == 0).sum()) * layer.block_size
