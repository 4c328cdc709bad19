"""Giving a model a checkpoint's numbers of non-zeros, before its tensors are loaded one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dsr_kernels.nn.accumulators import refuse_held
from dsr_kernels.nn.layers import named_sparse_modules
from dsr_kernels.nn.leaf import why_fixed
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.nn.stored_weight import PARTS


def fit_to(model: nn.Module, sizes: Mapping[str, Any], prefix: str = "") -> None:
    """Gives every sparse layer of `model` as many non-zeros as a checkpoint has of it.

    load_state_dict does so itself. Loaders that copy or assign one tensor after another, such as
    torch.distributed.checkpoint and Accelerate's load_checkpoint_in_model, expect a model whose
    tensors have the checkpoint's shapes already; after a rewire with methods that move weights
    between layers they have not. So call this first:

        reader = FileSystemReader(path)
        dsr_kernels.fit_to(model, reader.read_metadata().state_dict_metadata)
        state = model.state_dict()
        torch.distributed.checkpoint.load(state, storage_reader=reader)
        model.load_state_dict(state)

    All sparse layers then have neither values (NaN) nor a pattern until both are loaded. Where they
    are not loaded by load_state_dict, the first forward pass checks the pattern.

    Args:
        model: on any device, meta included.
        sizes: by the keys of `model.state_dict()`, of each tensor its shape, or anything with a
            `shape` or a `size`: a tensor, an entry of a DCP reader's metadata. Keys of other
            tensors are passed over.
        prefix: what the checkpoint's keys begin with before the model's ("model." of a checkpoint
            of {"model": model.state_dict()}).

    Raises ValueError, naming the layer, where sizes of a layer are missing or cannot be its
    weight's, and RuntimeError where torch parametrizes its weight_values, where their memory
    belongs to others, too, or where a torch.nn.parallel.DistributedDataParallel or a hook holds
    the accumulator of a gradient whose length would change; nothing has changed then.
    """
    found = [
        (module, _blocks(name, module, sizes, prefix + name + "." if name else prefix))
        for name, module in named_sparse_modules(model)
    ]
    for module, blocks in found:
        _check_nobody_holds(module, blocks)
    for module, blocks in found:
        module.expect(blocks)


def _blocks(name: str, module: SparseModule, sizes: Mapping[str, Any], prefix: str) -> int:
    """The number of blocks (of one weight each: non-zeros) that the checkpoint has of a layer."""
    if "weight_values" not in module._parameters:
        raise RuntimeError(
            f"layer {name!r}: weight_values is not a parameter of its own (parametrized or pruned "
            "by torch?); fit the model to the checkpoint before that"
        )
    missing = [prefix + part for part in PARTS if prefix + part not in sizes]
    if missing:
        raise ValueError(f"layer {name!r}: expected the size of {missing[0]!r}, `sizes` has none")
    values, crow, col = (_size(sizes[prefix + part], prefix + part) for part in PARTS)
    blocks, size = col[0] if len(col) == 1 else -1, module.block_size
    rows = module.weight_shape[0] // size
    if values != (blocks, size) or crow != (rows + 1,) or not 0 <= blocks * size <= module.numel:
        count = "nnz" if size == 1 else "blocks"
        raise ValueError(
            f"layer {name!r}: expected weight_values ({count}, {size}), crow_indices ({rows + 1},) "
            f"and col_indices ({count},) of a weight of shape {module.weight_shape}"
            f"{'' if size == 1 else f' with block_size={size}'}, got {values}, {crow} and {col}"
        )
    return blocks


def _check_nobody_holds(module: SparseModule, blocks: int) -> None:
    """Raises RuntimeError where somebody would go on with the memory or the length of now."""
    refuse_held(module.weight_values, blocks, module.label())
    reason = why_fixed(module.weight_values)
    if reason and blocks != module.col_indices.numel():
        raise RuntimeError(f"{module.label()}: {reason}")


def _size(entry: Any, key: str) -> tuple[int, ...]:
    """The shape that `entry` is or has."""
    shape = getattr(entry, "shape", None)
    if shape is None and not isinstance(entry, tuple | list):
        shape = getattr(entry, "size", None)
    try:
        return tuple(torch.Size(entry if shape is None else shape))
    except TypeError:
        raise ValueError(
            f"sizes: expected a shape or a tensor for {key!r}, got {type(entry).__name__}"
        ) from None
