"""Which layer of a copy of the model, such as an average of its weights, is which of its own."""

from __future__ import annotations

from torch import nn

from dsr_kernels.rewiring.layers import SparseLayer, check_same_pattern, find_layers
from dsr_kernels.rewiring.names import match_names


def add_followers(layers: list[SparseLayer], model: nn.Module) -> None:
    """Lets the layers of `model`, a copy, follow `layers`.

    The copy may be a part of the model that is rewired, as an average beside its model in one
    module is: its layers must be frozen then. Raises ValueError that names the layer, before
    anything has changed, unless `model` is a copy with the same patterns and a memory of its own.
    """
    kind = type(model).__name__
    copies = find_layers(model)
    _check_is_copy(layers, copies, kind)
    inside = {id(copy.module) for copy in copies}
    leaders = [layer for layer in layers if id(layer.module) not in inside]
    pairs = _match(leaders, copies, kind)
    for layer, copy in pairs:
        check_same_pattern(layer.name, layer.module, f"{copy.name} of {kind}", copy.module)
    for layer, copy in pairs:
        modules = [(copy.name, copy.module), *copy.sharers]
        layer.followers += [(f"{name} of {kind}", module) for name, module in modules]


def _check_is_copy(layers: list[SparseLayer], copies: list[SparseLayer], kind: str) -> None:
    own = {id(layer.module): layer for layer in layers}
    inside = sum(id(copy.module) in own for copy in copies)
    if inside == len(layers):
        raise ValueError("follow: expected a copy of the model, got the model itself")
    following = {id(module) for layer in layers for _, module in layer.followers}
    for copy in copies:
        name = f"layer {copy.name!r} of {kind}"
        if "weight_values" not in copy.module._parameters:
            raise ValueError(
                f"follow: weight_values of {name} is not a parameter of its own (parametrized or "
                "pruned by torch?); make that permanent first"
            )
        if id(copy.module) in following:
            raise ValueError(f"follow: {name} follows already; call `follow` once for each copy")
        layer = own.get(id(copy.module))
        if layer is not None and (inside < len(copies) or layer.weight_values.requires_grad):
            raise ValueError(
                f"follow: {name} is the layer {layer.name!r} of this rewirer, expected a copy; use "
                "copy.deepcopy, and freeze a copy that is a part of the rewired model with "
                "requires_grad_(False)"
            )
        for layer in layers:
            if layer.module is not copy.module and _share_memory(layer, copy):
                raise ValueError(
                    f"follow: {name} shares its values with layer {layer.name!r} of the model, "
                    "expected values of its own; use copy.deepcopy"
                )


def _share_memory(one: SparseLayer, other: SparseLayer) -> bool:
    storages = (layer.weight_values.untyped_storage() for layer in (one, other))
    return len({storage._cdata for storage in storages}) == 1


def _match(
    layers: list[SparseLayer], copies: list[SparseLayer], kind: str
) -> list[tuple[SparseLayer, SparseLayer]]:
    """(layer, its copy) by name. Modules that share a Parameter must do so in both."""
    groups = [_names(layer) for layer in layers]
    by_name = {name: copy for copy in copies for name in _names(copy)}
    names = [name for group in groups for name in group]
    matched = match_names(names, list(by_name), any_holder=True)
    if matched is None:
        missing, extra = sorted(set(names) - set(by_name)), sorted(set(by_name) - set(names))
        raise ValueError(
            f"follow: expected a copy of the model, but {kind} has "
            + (f"no sparse module {missing[0]!r}" if missing else "")
            + (" and " if missing and extra else "")
            + (f"a sparse module {extra[0]!r} that the model has not" if extra else "")
            + "; where something else holds the copy, follow that part of it"
        )
    pairs = [(layer, by_name[matched[layer.name]]) for layer in layers]
    for (layer, copy), group in zip(pairs, groups, strict=True):
        if {matched[name] for name in group} != set(_names(copy)):
            raise ValueError(
                f"follow: layer {layer.name!r}: the modules {group} share one Parameter, those of "
                f"{kind} that do are {_names(copy)}; expected a copy.deepcopy of the model"
            )
    return pairs


def _names(layer: SparseLayer) -> list[str]:
    return [layer.name, *(name for name, _ in layer.sharers)]
