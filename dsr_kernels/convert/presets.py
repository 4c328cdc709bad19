"""Presets: which layers stay dense unless the caller says more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from dsr_kernels.convert.heads import heads
from dsr_kernels.nn.from_dense import DenseLayer
from dsr_kernels.probe import Inputs

PRESETS = ("safe", "paper", "all")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
# Parts of the names that authors give to the convolution beside a residual block.
SHORTCUTS = ("downsample", "shortcut", "skip")


def kept_dense(
    model: nn.Module,
    names: Mapping[DenseLayer, list[str]],
    preset: str,
    inputs: Inputs | None = None,
) -> dict[DenseLayer, str]:
    """Why `preset` leaves some of the layers dense.

    safe: the stem, classifier heads and depthwise convolutions. paper: what the paper leaves
    dense, the stem and 1x1 convolutions of shortcuts; and depthwise ones, which it has none of.
    all: nothing.

    The stem is the first layer, where that is a convolution, in the order of the registered
    modules. heads.heads says what the heads are, with `inputs` by a forward pass. A layer that is
    the model itself is neither.
    """
    if preset == "all" or not names or model in names:
        return {}
    found = {layer: "depthwise" for layer in names if is_depthwise(layer)}
    first = next(iter(names))
    if isinstance(first, CONVOLUTIONS):
        found[first] = "the stem"
    if preset == "safe":
        found.update(dict.fromkeys(heads(model, names, inputs), "the classifier head"))
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
