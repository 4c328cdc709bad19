"""Presets: which layers stay dense unless the caller says more."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from dsr_kernels.nn.from_dense import DenseLayer

PRESETS = ("safe", "paper", "all")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
# Parts of the names that authors give to the convolution beside a residual block.
SHORTCUTS = ("downsample", "shortcut", "skip")
# Words of the names that they give to a head: head_dist, aux_classifier, heads. Not so `fc`: a head
# is called that, but fc1, fc_in and the like are layers of a plain network.
HEADS = re.compile(r"fc|([a-z0-9]+_)*(head|classifier)s?\d*(_[a-z0-9]+)*", re.IGNORECASE)


def kept_dense(
    model: nn.Module, names: Mapping[DenseLayer, list[str]], preset: str
) -> dict[DenseLayer, str]:
    """Why `preset` leaves some of the layers dense.

    safe: the stem, classifier heads and depthwise convolutions. paper: what the paper leaves
    dense, the stem and 1x1 convolutions of shortcuts; and depthwise ones, which it has none of.
    all: nothing.

    The stem is the first layer, where that is a convolution. The head is the last layer, unless it
    is in one of several blocks of a class in a list, as the last layer of a model without a head
    is. Further heads are the last layers of the model's parts that are called so: see HEADS. The
    order is that of the registered modules. A layer that is the model itself is neither.
    """
    if preset == "all" or not names or model in names:
        return {}
    found = {layer: "depthwise" for layer in names if is_depthwise(layer)}
    first = next(iter(names))
    if isinstance(first, CONVOLUTIONS):
        found[first] = "the stem"
    if preset == "safe":
        found.update(dict.fromkeys(_heads(model, names), "the classifier head"))
    if preset == "paper":
        shortcuts = (layer for layer, aliases in names.items() if _is_shortcut(layer, aliases))
        found.update(dict.fromkeys(shortcuts, "the 1x1 convolution of a shortcut"))
    return {layer: f"{what}: preset={preset!r}" for layer, what in found.items()}


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each output channel of a convolution sees one input channel of several."""
    groups = getattr(layer, "groups", 1)
    return bool(groups > 1 and groups == getattr(layer, "in_channels", 0))


def _is_shortcut(layer: nn.Module, aliases: Iterable[str]) -> bool:
    if not isinstance(layer, CONVOLUTIONS) or set(layer.kernel_size) != {1}:
        return False
    return any(word in alias.lower() for alias in aliases for word in SHORTCUTS)


def _heads(model: nn.Module, names: Mapping[DenseLayer, list[str]]) -> Iterator[DenseLayer]:
    """The last layer of the model, and of each of its parts that has the name of a head."""
    *_, last = names
    if not _is_repeated(model, names[last][0]):
        yield last
    ends: dict[str, DenseLayer] = {}
    for layer, (name, *_) in names.items():
        ends[name.split(".")[0]] = layer
    for part, layer in ends.items():
        if HEADS.fullmatch(part):
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
