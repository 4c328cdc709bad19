"""Putting the twins of layers into a model, or into a copy of it; densify."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar, overload

import torch
from torch import nn

from dsr_kernels.convert.choice import forget
from dsr_kernels.convert.fast_path import set_flags
from dsr_kernels.nn import SparseConv1d, SparseConv2d, SparseLinear, SparseModule, transposed
from dsr_kernels.nn.carry_over import copy_hangings
from dsr_kernels.nn.from_dense import DenseLayer, hang
from dsr_kernels.nn.holders import Exchange
from dsr_kernels.nn.transposed import is_transposed
from dsr_kernels.nn.twins import KINDS, obstacles_to_dense

M = TypeVar("M", bound=nn.Module)


# A layer becomes another class; a model stays of its own.
@overload
def densify(model: SparseConv1d, *, inplace: bool = False) -> nn.Conv1d: ...
@overload
def densify(model: SparseConv2d, *, inplace: bool = False) -> nn.Conv2d: ...
@overload
def densify(model: SparseLinear, *, inplace: bool = False) -> nn.Linear: ...
@overload
def densify(model: M, *, inplace: bool = False) -> M: ...


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
    with torch.inference_mode(False):  # what is made is to be trained
        for module in sparse.values():
            twins[module] = twin = module.dense_module()
            if isinstance(twin, DenseLayer) or is_transposed(twin):
                own = twin._parameters["weight"]
                twin._parameters["weight"] = weights.setdefault(module.weight_values, own)
        changed = exchange(model, twins, inplace)
    forget(changed)
    return changed


def exchange(model: M, twins: Mapping[nn.Module, nn.Module], inplace: bool) -> M:
    """Puts each layer's twin wherever the model, or a copy of it, has the layer."""
    memo: dict[int, Any] = {id(layer): twin for layer, twin in twins.items()}
    swap = Exchange(twins)

    def take(value: Any) -> Any:
        return swap(value) if inplace else copy.deepcopy(value, memo)

    changed = take(model)
    for layer, twin in twins.items():
        if is_transposed(layer) or is_transposed(twin):
            transposed.hang(layer, twin, take)
        elif type(layer) in KINDS or type(twin) in KINDS:  # else dense_module is the user's own
            hang(layer, twin, take)
    for parameter in model.parameters() if not inplace else ():
        if id(parameter) in memo:
            copy_hangings(parameter, memo[id(parameter)], take)
    set_flags(changed)
    return changed
