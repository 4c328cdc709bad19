"""Checkpoints of torch.distributed.checkpoint (DCP), of models whose sizes differ from theirs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dsr_kernels.nn.stored_weight import PARTS


class SparseLoadPlanner(DefaultLoadPlanner):
    """Loads sparse layers of any number of non-zeros, and the optimizer's state of their values:

        state = {"model": model.state_dict()}
        dcp.load(state, checkpoint_id=path, planner=SparseLoadPlanner())
        model.load_state_dict(state["model"])

    DCP fills the tensors that it is given, so these must have the checkpoint's sizes, which differ
    after weights have moved between layers. This planner puts new tensors of the checkpoint's sizes
    in the state in place of a sparse layer's. So the model has the new weights only once it loads
    them; that checks them, too. All else is as with torch's planner, whose arguments it takes.

    The state of an optimizer must have names of parameters, as get_optimizer_state_dict gives them.
    That of a rewirer goes in as one object: pickle.dumps(rewirer.state_dict()).
    """

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        """As torch's, in a state whose tensors of sparse layers are new."""
        saved = {} if metadata is None else metadata.state_dict_metadata
        _renew(state_dict, "", saved)
        super().set_up_planner(state_dict, metadata, is_coordinator)


def _renew(holder: Any, prefix: str, saved: dict[str, Any]) -> None:
    """Replaces each tensor of a sparse layer in nested dicts and lists."""
    items = holder.items() if isinstance(holder, dict) else enumerate(holder)
    for key, held in list(items):
        name = f"{prefix}{key}"
        if isinstance(held, dict | list):
            _renew(held, f"{name}.", saved)
        elif type(held) in (Tensor, nn.Parameter) and _is_of_entries(name, saved):
            size = saved[name].size
            holder[key] = torch.empty(size, dtype=held.dtype, device=held.device)


def _is_of_entries(name: str, saved: dict[str, Any]) -> bool:
    """Whether the checkpoint has such a tensor, and its first size is a number of non-zeros."""
    if not isinstance(saved.get(name), TensorStorageMetadata):
        return False
    before, _, last = name.rpartition(".")
    if last in PARTS:
        layer = f"{before}." if before else ""
        return all(layer + part in saved for part in PARTS)
    return before.rpartition(".")[2] == "weight_values"
