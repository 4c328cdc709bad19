"""Optimizers that update a two-dimensional parameter as a matrix, which weight_values is not.

`weight_values` [blocks, block_size] is a list of single weights, or of blocks of them. An update
that mixes its entries, by singular vectors, Kronecker factors or a projection, makes no sense of
them, and its state could not follow a rewire. docs/optimizers.md says which optimizers work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import nn

# Parts of the names of classes whose rule is a matrix's: Muon, NorMuon, MuonWithAuxAdam,
# DistributedShampoo, SOAP, ForeachPSGDKron, Dion, Scion, GaLore and so on.
MATRIX_RULES = ("muon", "shampoo", "soap", "kron", "dion", "scion", "galore")
# What a group of Dion's sets to be updated entry by entry.
ENTRY_BY_ENTRY = ("adam", "adamw", "lion", "sgd")


def matrix_rule(optimizer: Any, group: Mapping[str, Any], parameter: nn.Parameter) -> str | None:
    """Why `optimizer` updates `parameter` of `group` as a matrix; None where no reason is known.

    A flag of the group, or of the parameter's state, decides. Muons that leave other parameters to
    Adam have `use_muon` or `use_fallback`, Dion has `algorithm`. GaLore, APOLLO and Fira project
    the groups that have a `rank`. Where there is no flag, the names of the classes decide.
    """
    state = (getattr(optimizer, "state", None) or {}).get(parameter) or {}
    use_muon = state.get("use_muon", group.get("use_muon"))
    if use_muon is not None:
        return "use_muon=True" if use_muon else None
    if group.get("use_fallback") or group.get("algorithm") in ENTRY_BY_ENTRY:
        return None
    if group.get("rank") is not None and ("update_proj_gap" in group or "proj_type" in group):
        return f"a projection to rank={group['rank']}"
    kind: type = type(optimizer)
    return _named_rule(kind)


@lru_cache
def _named_rule(optimizer: type) -> str | None:
    for kind in optimizer.__mro__:
        if any(rule in kind.__name__.lower() for rule in MATRIX_RULES):
            return kind.__name__
    return None


def refuse_matrix_rules(optimizers: Sequence[Any], names: Mapping[nn.Parameter, str]) -> None:
    """Raises ValueError if one of the optimizers updates one of these parameters as a matrix.

    `names` gives the layer of each. Frozen parameters are passed over: nothing updates them. Of
    optimizers around others, which come first, the innermost one that holds a parameter decides.
    """
    for optimizer, group, parameter in _updates(optimizers):
        if parameter not in names or not parameter.requires_grad:
            continue
        rule = matrix_rule(optimizer, group, parameter)
        if rule is not None:
            raise ValueError(
                f"optimizer: {type(optimizer).__name__} updates the weight_values of layer "
                f"{names[parameter]!r} as a matrix ({rule}), but they are a list of single "
                "weights; put them into a group that is updated entry by entry (as by "
                "use_muon=False, or without rank), or into an optimizer such as AdamW and "
                "give the Rewirer both"
            )


def _updates(optimizers: Sequence[Any]) -> list[tuple[Any, Mapping[str, Any], nn.Parameter]]:
    """(optimizer, group, parameter), each parameter once."""
    found = {
        id(parameter): (optimizer, group, parameter)
        for optimizer in optimizers
        for group in getattr(optimizer, "param_groups", ())
        for parameter in group["params"]
    }
    return list(found.values())
