"""How a sparse layer meets a checkpoint: which keys it takes, what it checks, how it resizes.

A checkpoint holds `<fqn>.values`, `<fqn>.crow_indices`, `<fqn>.col_indices` and `<fqn>.bias`; the
weight's shape goes into the state_dict's metadata, where torch.save keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .reference import at_pattern
from .topology import Topology, check_pattern

if TYPE_CHECKING:
    from .nn import SparseModule

PARTS = ("values", "crow_indices", "col_indices")


def set_data(parameter: nn.Parameter, data: Tensor) -> None:
    """Give a leaf other data, of another size too, and drop its grad.

    Autograd keeps a leaf's size in its gradient accumulator, which lives as long as any old graph
    does (a loss kept from the last iteration is enough) and is renewed only when the dtype changes:
    so the data goes through an empty tensor of another dtype.
    """
    parameter.grad = None
    other = torch.float32 if parameter.dtype == torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=data.device)
    parameter.data = data


def note_shape(destination: Mapping, prefix: str, weight_shape: tuple[int, ...]) -> None:
    metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
    if metadata is not None:
        metadata["weight_shape"] = list(weight_shape)


def prepare(
    module: SparseModule, state_dict: Mapping[str, Any], prefix: str, metadata: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Check the module's part of a checkpoint, resize the module to it, return what torch may copy.

    Raises ValueError, before anything changed, for what cannot be this module's weight.
    """
    weight = _read_weight(module, state_dict, prefix, metadata)
    if weight is None:
        return state_dict
    bias = state_dict.get(f"{prefix}bias")
    if module.bias is not None and bias is not None and bias.shape != module.bias.shape:
        raise ValueError(
            f"bias: expected shape {tuple(module.bias.shape)}, got {tuple(bias.shape)}"
        )
    if weight["values"].numel() != module.nnz:
        device, nnz = module.values.device, weight["values"].numel()
        # New tensors, not resize_: graphs recorded before keep the pattern they know.
        module.col_indices = torch.empty(nnz, dtype=torch.int32, device=device)
        set_data(module.values, torch.empty(nnz, dtype=module.values.dtype, device=device))
    module._pattern_pending = False
    own = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
    own.pop(f"{prefix}weight", None)
    return own | {prefix + part: tensor for part, tensor in weight.items()}


def _read_weight(
    module: SparseModule, state_dict: Mapping[str, Any], prefix: str, metadata: Mapping[str, Any]
) -> dict[str, Tensor] | None:
    """The checkpoint's values, crow_indices and col_indices; None if it has no trace of them."""
    shape = module.weight_shape
    dense = state_dict.get(f"{prefix}weight")
    found = {part: state_dict[prefix + part] for part in PARTS if prefix + part in state_dict}
    if dense is not None and found:
        raise ValueError(
            f"the checkpoint has both a dense weight and {', '.join(found)}: which one?"
        )
    if dense is not None:
        return _from_dense(dense, shape)
    if not found:
        return None
    if len(found) < len(PARTS):
        missing = ", ".join(part for part in PARTS if part not in found)
        raise ValueError(
            f"the checkpoint has {', '.join(found)} but not {missing}; values mean nothing without "
            "the positions they belong to"
        )
    saved_shape = tuple(metadata.get("weight_shape", shape))
    if saved_shape != shape:
        raise ValueError(f"expected a weight of shape {shape}, the checkpoint's is {saved_shape}")
    for part in PARTS[1:]:
        found[part] = _to_int32(part, found[part])
    values = found["values"]
    if values.shape != found["col_indices"].shape or not values.is_floating_point():
        raise ValueError(
            f"values: expected one floating-point value for each of the "
            f"{found['col_indices'].numel()} col_indices, got {values.dtype} of shape "
            f"{tuple(values.shape)}"
        )
    check_pattern(shape, found["crow_indices"], found["col_indices"])
    return found


def _from_dense(weight: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
    if tuple(weight.shape) != shape or not weight.is_floating_point():
        raise ValueError(
            f"weight: expected a dense floating-point weight of shape {shape}, "
            f"got {weight.dtype} of shape {tuple(weight.shape)}"
        )
    pattern = Topology.from_mask(weight)
    crow, col = pattern.crow_indices, pattern.col_indices
    return {
        "values": at_pattern(weight.detach(), crow, col),
        "crow_indices": crow,
        "col_indices": col,
    }


def _to_int32(name: str, index: Tensor) -> Tensor:
    if index.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: expected int32 (or int64) indices, got {index.dtype}")
    if index.dtype == torch.int64 and index.numel() and not index.is_meta:
        low, high = index.aminmax()
        if low < 0 or high > torch.iinfo(torch.int32).max:
            raise ValueError(f"{name}: expected indices in the range of int32, got {low} to {high}")
    return index.to(torch.int32)
