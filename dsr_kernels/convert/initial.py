"""What a sparse layer's values begin with: the dense layer's, or rescaled; and trained models."""

from __future__ import annotations

import torch
from torch import nn

from dsr_kernels.nn import SparseModule

INIT = ("dense", "fan_in")
NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.RMSNorm),
)


def check_init(init: str, keep: str, on_meta: bool) -> None:
    """Raises ValueError where rescaling has no meaning: of weights that were chosen by their size,
    and of weights that are drawn later.
    """
    if init == "dense":
        return
    if keep == "magnitude":
        raise ValueError(
            "init: 'fan_in' makes up for random weights that are left out; weights kept by "
            "magnitude stay as they are: pass init='dense' with keep='magnitude'"
        )
    if on_meta:
        raise ValueError(
            "init: 'fan_in' rescales weights, and a layer on meta has none; pass init='dense', or "
            "convert the model once it has its weights"
        )


@torch.no_grad()
def rescale_to_fan_in(layer: SparseModule) -> None:
    """Multiplies each output channel's values by sqrt(inputs / non-zeros of that channel).

    Outputs of random weights of mean 0 then have the variance that the dense layer gives them.
    """
    held = layer.crow_indices.diff()
    factors = (layer.row_length / held.clamp_min(1)).sqrt().repeat_interleave(held)
    layer.weight_values.mul_(factors[:, None].to(layer.weight_values.dtype))


def looks_trained(model: nn.Module) -> str | None:
    """The name of a normalization that has learned: its weights or biases differ. None: no sign.

    A new one has ones and zeros. A model without any shows nothing.
    """
    for name, module in model.named_modules():
        if not isinstance(module, NORMS) and not type(module).__name__.endswith("Norm"):
            continue
        for parameter in module._parameters.values():
            if parameter is None or isinstance(parameter, nn.UninitializedParameter):
                continue
            if parameter.numel() > 1 and not parameter.is_meta:
                values = parameter.detach()
                if not torch.equal(values, values.flatten()[0].expand_as(values)):
                    return name
    return None
