"""The name of a sparse layer, whatever a model is wrapped in.

A rewirer's states, reports and errors name layers. DistributedDataParallel puts `module.` before
every name, torch.compile `_orig_mod.`. These parts say nothing of the model, so they are left out:
a state that was saved with a wrapper loads without it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

from torch import nn

from dsr_kernels.nn import SparseModule

Value = TypeVar("Value")

# By its full name, for importing all of these takes long: the wrapper, and its attribute that is
# the wrapped model. A subclass has its base's attribute.
WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": (
        "_checkpoint_wrapped_module"
    ),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "_fsdp_wrapped_module"
    ),
}


def named_layers(model: nn.Module) -> list[tuple[str, SparseModule]]:
    """(name, module) of every sparse layer, once, in the model's order; wrappers have no part in
    the names. Where two layers would then have one name, all have their full names.
    """
    found = list(_walk(model))
    short = {name for name, _, _ in found}
    return [(name if len(short) == len(found) else full, module) for name, full, module in found]


def _walk(model: nn.Module) -> Iterator[tuple[str, str, SparseModule]]:
    """(name without wrappers, full name, module)."""
    modules, names = {}, {}
    for full, module in model.named_modules():
        modules[full] = module
        parent, _, attribute = full.rpartition(".")
        if not full:
            names[full] = ""
        elif attribute == _wrapped_as(modules[parent]):
            names[full] = names[parent]
        else:
            names[full] = f"{names[parent]}.{attribute}" if names[parent] else attribute
        if isinstance(module, SparseModule):
            yield names[full], full, module


def _wrapped_as(module: nn.Module) -> str | None:
    """The attribute that is the model, where `module` is one of WRAPPERS."""
    classes = (f"{c.__module__}.{c.__qualname__}" for c in type(module).__mro__)
    return next((WRAPPERS[name] for name in classes if name in WRAPPERS), None)


def match_names(
    names: Collection[str], others: Collection[str], *, any_holder: bool = False
) -> dict[str, str] | None:
    """Of each of `names` its counterpart among `others`: the same name, but for a part that all of
    them begin with. It is there where something unknown holds the model, as a LightningModule does.
    None where the names differ otherwise.

    any_holder: both may begin with something else. Then layer1.0, layer1.1 and layer2.0, layer2.1
    are taken for one model, so compare the layers, too.
    """
    if len(names) != len(others) or not names:
        return None
    if len(names) == 1 and "" in (*names, *others):  # the model is itself the layer
        return dict(zip(names, others, strict=True))
    own, theirs = _holder(names), _holder(others)
    if not (any_holder or f".{own}".endswith(f".{theirs}") or f".{theirs}".endswith(f".{own}")):
        return None
    counterparts = {name.removeprefix(theirs): name for name in others}
    matched = {name: counterparts.get(name.removeprefix(own)) for name in names}
    return None if None in matched.values() else matched  # type: ignore[return-value]


def under_names(names: Collection[str], state: Mapping[str, Value]) -> dict[str, Value]:
    """What a state has of each layer, under the names that the layers have here. As it is where
    they do not match: then it belongs to another model.
    """
    matched = match_names(names, state)
    return dict(state) if matched is None else {name: state[matched[name]] for name in matched}


def _holder(names: Collection[str]) -> str:
    """The whole parts, each with its dot, that all names begin with. A name's last is none."""
    parts = [name.split(".")[:-1] for name in names]
    shared = 0
    while all(len(p) > shared and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return "".join(f"{part}." for part in parts[0][:shared])
