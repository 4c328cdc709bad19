"""What is checked of a sparse weight in a checkpoint, before a layer takes anything of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsr_kernels.backends.blocks import block_size_of
from dsr_kernels.nn import pretrained
from dsr_kernels.ops.reference import at_pattern
from dsr_kernels.topology import Topology, check_pattern

PARTS = ("weight_values", "crow_indices", "col_indices")
# Where torch keeps the values that it prunes or parametrizes.
PRUNED = ("weight_values_orig", "weight_values_mask")
PARAMETRIZED = "parametrizations.weight_values.original"
# Said once for a whole model.
RENAMED = (
    "the checkpoint was made before the `values` [nnz] of sparse layers became `weight_values` "
    "[nnz, 1]; rename them first: for k in [k for k in state_dict if k.split('.')[-1] == 'values']:"
    " state_dict[k[:-6] + 'weight_values'] = state_dict.pop(k)[:, None]"
)


def read_weight(
    shape: tuple[int, ...],
    block_size: int,
    state_dict: Mapping[str, Any],
    prefix: str,
    metadata: Mapping[str, Any],
) -> dict[str, Tensor] | None:
    """The checkpoint's weight_values, crow_indices and col_indices; None if it has none of them.

    A dense `weight` gives its non-zeros. Raises ValueError for what cannot be a weight of `shape`.
    """
    dense = state_dict.get(f"{prefix}weight")
    found = {part: state_dict[prefix + part] for part in PARTS if prefix + part in state_dict}
    if found and pretrained.is_mark(dense):
        dense = None
    if dense is not None and found:
        raise ValueError(
            f"expected either a dense weight or weight_values, got weight and {', '.join(found)}"
        )
    if dense is not None:
        return _from_dense(dense, shape, block_size)
    if f"{prefix}values" in state_dict and f"{prefix}weight_values" not in state_dict:
        raise ValueError(RENAMED)
    if not found:
        return None
    if "weight_values" not in found:
        _refuse_computed(state_dict, prefix)
    if len(found) < len(PARTS):
        missing = ", ".join(part for part in PARTS if part not in found)
        raise ValueError(
            f"the checkpoint has {', '.join(found)} but not {missing}; values have no meaning "
            "without their positions"
        )
    _check_shape(shape, state_dict, prefix, metadata)
    for part in PARTS[1:]:
        found[part] = _to_int32(part, found[part])
    values, blocks = found["weight_values"], found["col_indices"].numel()
    _check_block_size(shape, block_size, values, found["crow_indices"])
    if values.shape != (blocks, block_size) or not values.is_floating_point():
        raise ValueError(
            f"weight_values: expected floating-point values of shape ({blocks}, {block_size}), a "
            f"row for each of the col_indices, got {values.dtype} of shape {tuple(values.shape)}"
        )
    check_pattern(shape, found["crow_indices"], found["col_indices"], block_size)
    return found


def _check_block_size(
    shape: tuple[int, ...], block_size: int, values: Tensor, crow: Tensor
) -> None:
    """Raises ValueError for a checkpoint of blocks of another size."""
    saved = block_size_of(crow, shape[0])
    if saved in (0, block_size) or values.dim() != 2 or values.shape[1] != saved:
        return
    raise ValueError(
        f"expected weights with block_size={block_size}, the checkpoint's have block_size={saved}; "
        "build the layer with that one"
    )


def check_stored_pattern(
    shape: tuple[int, ...],
    block_size: int,
    blocks: int,
    state_dict: Mapping[str, Any],
    prefix: str,
) -> None:
    """Raises ValueError for a pattern that a layer whose values torch parametrizes cannot take.

    Those values are held elsewhere, so the number of non-zeros must stay. Another pattern of as
    many is taken, with its values.
    """
    crow, col = (state_dict.get(prefix + part) for part in PARTS[1:])
    if crow is None or col is None:
        return
    held = (state_dict.get(prefix + key) for key in (*PRUNED, PARAMETRIZED))
    counts = {col.numel(), *(len(values) for values in held if values is not None)}
    if counts != {blocks}:
        other = ", ".join(str(count) for count in sorted(counts - {blocks}))
        raise ValueError(
            f"weight_values is parametrized or pruned by torch, so the layer keeps its {blocks} "
            f"{'non-zeros' if block_size == 1 else 'blocks'}, but the checkpoint has {other}; make "
            "it permanent (prune.remove, parametrize.remove_parametrizations), in the model that "
            "is saved as well"
        )
    pattern = _to_int32("crow_indices", crow), _to_int32("col_indices", col)
    check_pattern(shape, *pattern, block_size)


def _check_shape(
    shape: tuple[int, ...], state_dict: Mapping[str, Any], prefix: str, metadata: Mapping[str, Any]
) -> None:
    """Raises ValueError for a checkpoint of a weight of another shape, as far as it tells."""
    saved = state_dict.get(f"{prefix}dense_shape")
    if saved is not None and not saved.is_meta:
        saved = saved.tolist()
    else:  # made before that was a tensor
        saved = metadata.get("weight_shape", shape)
    if tuple(saved) != shape:
        raise ValueError(f"expected a weight of shape {shape}, the checkpoint's is {tuple(saved)}")


def _refuse_computed(state_dict: Mapping[str, Any], prefix: str) -> None:
    """Raises ValueError for values that torch computed from others in the model that was saved."""
    if prefix + PRUNED[0] in state_dict:
        raise ValueError(
            f"the checkpoint's weight_values is pruned by torch ({', '.join(PRUNED)}); call "
            "prune.identity(layer, 'weight_values') before loading it, or prune.remove before "
            "saving"
        )
    if prefix + PARAMETRIZED in state_dict:
        raise ValueError(
            f"the checkpoint's weight_values is parametrized ({PARAMETRIZED}); register the same "
            "parametrization before loading it, or remove it before saving"
        )


def _from_dense(weight: Tensor, shape: tuple[int, ...], block_size: int) -> dict[str, Tensor]:
    """Of blocks those that have a weight other than 0."""
    if tuple(weight.shape) != shape or not weight.is_floating_point():
        raise ValueError(
            f"weight: expected a dense floating-point weight of shape {shape}, "
            f"got {weight.dtype} of shape {tuple(weight.shape)}"
        )
    there = weight.detach().ne(0).unflatten(0, (-1, block_size)).any(1)
    pattern = Topology.from_positions(shape, there.flatten().nonzero().flatten(), block_size)
    crow, col = pattern.crow_indices, pattern.col_indices
    return {
        "weight_values": at_pattern(weight.detach(), crow, col),
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
