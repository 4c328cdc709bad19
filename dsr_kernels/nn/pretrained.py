"""save_pretrained: its checkpoint has a mark that keeps from_pretrained from random weights.

from_pretrained, of huggingface_hub's PyTorchModelHubMixin and of transformers, builds the dense
model anew, passes over the keys of a checkpoint that it does not know and leaves random what it
does not find. It refuses a tensor of another shape. So beside the tensors of a sparse layer such a
checkpoint has `<fqn>.weight` of shape [1], which no dense weight has and sparse layers pass over.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor

SAID = (
    "save_pretrained: where its class builds dense layers, from_pretrained will refuse this "
    "checkpoint (size mismatch). To load it, build the model, sparsify it in the same way, and "
    "call load_state_dict with the file's tensors; or save dsr_kernels.densify(model)"
)


def mark(destination: dict[str, Any], prefix: str) -> None:
    """Adds the mark to a state_dict that save_pretrained has asked for, and warns."""
    if _saves_pretrained():
        destination[f"{prefix}weight"] = torch.zeros(1)
        warnings.warn(SAID, stacklevel=2)


def is_mark(weight: Tensor | None) -> bool:
    return weight is not None and tuple(weight.shape) == (1,)


def _saves_pretrained() -> bool:
    """Whether this is called by a method save_pretrained whose object has from_pretrained, too."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "save_pretrained":
            return hasattr(frame.f_locals.get("self"), "from_pretrained")
        frame = frame.f_back  # type: ignore[assignment]
    return False
