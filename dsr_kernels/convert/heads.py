"""Classifier heads: which layers of a model make its output."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from dsr_kernels.convert.makers import Makers, find_makers
from dsr_kernels.nn.from_dense import DenseLayer
from dsr_kernels.probe import Inputs

# Words of the names that authors give to a head: head_dist, aux_classifier, heads. Not so `fc`: a
# head is called that, but fc1, fc_in and the like are layers of a plain network. Nor is what comes
# before a head one.
HEADS = re.compile(r"fc|(?!pre_)([a-z0-9]+_)*(head|classifier)s?\d*(_[a-z0-9]+)*", re.IGNORECASE)
# Heads that help in training, by the names that torchvision and timm give them: aux1, AuxLogits.
HELPERS = re.compile(r"aux\w*", re.IGNORECASE)


def heads(
    model: nn.Module, names: Mapping[DenseLayer, list[str]], inputs: Inputs | None
) -> set[DenseLayer]:
    """The layers of `names` that are heads. What knows most decides:

    1. What the model says of itself: `get_classifier()`, as models of timm have; or, for those of
       transformers, `get_output_embeddings()` and the last layer of each part beside the base
       model. A base model by itself says nothing.
    2. With `inputs`, a forward pass in each mode: the layers behind which no other layer comes,
       for each tensor of the output. It has no head if these are in a repeated block, or follow
       each other, as layers do that add to a residual stream.
    3. The last layer in the order of registration, unless it is in a repeated block: one of several
       of a class in a list. With it the linear layers right before it on the top level that take
       as many inputs and can feed none, as two heads lie side by side.

    Names come last, for heads that only a training loop calls, or that 3. does not see: the last
    layer of each part of the model that is called so (HEADS, HELPERS). What 1. or 2. shows to be
    none is none by its name either: timm's `conv_head` is a layer of the body.

    Without 1. and 2. nothing tells an actor's network from a critic's body where neither has such a
    name, or a last layer that projects features from a head. A forward pass does, so pass
    `example_input`. Summary names each layer that was taken for a head.
    """
    said = _said(model)
    if said is not None:
        found = {last for part in said if (last := _last(part, names)) is not None}
        return found | {layer for part, layer in _ends(names) if HELPERS.fullmatch(part)}
    makers = Makers() if inputs is None else find_makers(model, names, inputs)
    if makers.known:
        repeated = {layer for layer, (name, *_) in names.items() if _is_repeated(model, name)}
        found = {layer for layer in _of_heads(makers, repeated) if layer in names}
    else:
        found = set(_in_order(model, names))
    called = (layer for part, layer in _ends(names) if _is_called_head(part))
    inner = set(makers.before).difference(*makers.outputs)
    return found | {layer for layer in called if layer not in inner}


def _said(model: nn.Module) -> list[nn.Module] | None:
    """The heads by what the model says of itself. None: it says nothing."""
    if callable(getattr(model, "get_classifier", None)):
        return _modules(_asked(model, "get_classifier"))
    found = _modules(_asked(model, "get_output_embeddings"))
    base = getattr(model, "base_model", None) if hasattr(model, "base_model_prefix") else None
    if isinstance(base, nn.Module) and base is not model:
        return [*(found or ()), *(part for part in model.children() if part is not base)]
    return found


def _asked(model: nn.Module, method: str) -> Any:
    """What a method of the model gives, of which only the name is known: whatever fails is no
    answer.
    """
    with contextlib.suppress(Exception):
        return getattr(model, method)()
    return None


def _modules(value: Any) -> list[nn.Module] | None:
    """A module or several as a list; None for anything else."""
    found = list(value) if isinstance(value, list | tuple) else [value]
    return found if found and all(isinstance(m, nn.Module) for m in found) else None


def _last(part: nn.Module, names: Collection[nn.Module]) -> Any:
    return next((m for m in reversed([*part.modules()]) if m in names), None)


def _ends(names: Mapping[DenseLayer, list[str]]) -> list[tuple[str, DenseLayer]]:
    """The last layer of each part of the model on the top level."""
    return list({name.split(".")[0]: layer for layer, (name, *_) in names.items()}.items())


def _is_called_head(part: str) -> bool:
    return any(pattern.fullmatch(part) for pattern in (HEADS, HELPERS))


def _of_heads(makers: Makers, repeated: Collection[nn.Module]) -> Iterator[nn.Module]:
    """The makers of those tensors of the output that a head gives."""
    for of_one in makers.outputs:
        if not makers.are_a_body(of_one) and not any(maker in repeated for maker in of_one):
            yield from of_one


def _in_order(model: nn.Module, names: Mapping[DenseLayer, list[str]]) -> Iterator[DenseLayer]:
    """The last layer, unless it is in a repeated block, and the heads beside it."""
    *before, last = names
    if _is_repeated(model, names[last][0]):
        return
    yield last
    beside = {child for child in model.children() if isinstance(child, nn.Linear)}
    for layer in reversed(before):
        if not isinstance(last, nn.Linear) or not {layer, last} <= beside:
            return
        if layer.in_features != last.in_features or layer.out_features == last.in_features:
            return
        yield layer


def _is_repeated(model: nn.Module, name: str) -> bool:
    """Whether a layer is in a block of a list that holds others of its class."""
    parts = name.split(".")
    parent = model
    for part in parts[:-1]:
        block = parent.get_submodule(part)
        kinds = Counter(type(child) for child in parent.children())
        listed = isinstance(parent, (nn.ModuleList, nn.Sequential))
        if listed and kinds[type(block)] > 1 and type(block) is not nn.Sequential:
            return True
        parent = block
    return False
