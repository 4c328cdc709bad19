"""The start of a training by several processes: all take the patterns of the first."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dsr_kernels.nn import SparseModule
from dsr_kernels.nn.accumulators import is_held
from dsr_kernels.nn.leaf import why_fixed
from dsr_kernels.rewiring.agreement import digest
from dsr_kernels.rewiring.names import named_layers
from dsr_kernels.rewiring.processes import Processes


@torch.no_grad()
def share_patterns(model: nn.Module, group: Any) -> None:
    """Gives every sparse layer the pattern and values that it has in the group's first process,
    wherever a pattern differs; torch sends all other values.

    Raises ValueError that names the layer, in all processes and before anything has changed, where
    their models have different sparse layers, or such a layer cannot take another pattern.
    """
    layers = named_layers(model)
    device = next((layer.weight_values.device for _, layer in layers), None)
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    processes = Processes(group, device)
    shapes = [(name, layer.weight_shape, layer.block_size) for name, layer in layers]
    _check_layers(processes, shapes, layers)
    if not layers:
        return
    # On the CPU, for the layers may be on several devices.
    patterns = [digest(layer.crow_indices, layer.col_indices).cpu() for _, layer in layers]
    blocks = torch.tensor([layer.blocks for _, layer in layers])
    seen = processes.gather(torch.stack([blocks, torch.stack(patterns)], dim=1))
    differ = (seen != seen[0]).any(2).any(0).tolist()
    fixed = [_why_not(layer) if d else "" for (_, layer), d in zip(layers, differ, strict=True)]
    _refuse_fixed(processes, [name for name, _ in layers], fixed)
    is_first = dist.get_rank(group) == 0
    for (_, layer), differs, count in zip(layers, differ, seen[0, :, 0].tolist(), strict=True):
        if differs:
            _share(processes, layer, is_first, count)


def _check_layers(
    processes: Processes, shapes: list[Any], layers: list[tuple[str, SparseModule]]
) -> None:
    failure: Exception | None = None
    try:
        for _, layer in layers:
            layer.pattern()  # raises where another has written to it
    except (ValueError, RuntimeError) as error:
        failure = error
    everybody = processes.gather_objects((failure and str(failure), shapes))
    if failure is not None:
        raise failure
    for index, (message, _) in enumerate(everybody):
        if message:
            raise ValueError(f"rank {processes.rank(index)} cannot start: {message}")
    all_shapes = [theirs for _, theirs in everybody]
    for index, theirs in enumerate(all_shapes):
        if theirs == all_shapes[0]:
            continue
        first, other = dict((x[0], x[1:]) for x in all_shapes[0]), {x[0]: x[1:] for x in theirs}
        name = next(n for n in [*first, *other] if first.get(n) != other.get(n))
        raise ValueError(
            f"layer {name!r}: expected the same sparse layers in all processes, but it is "
            f"{_shown(first.get(name))} on rank {processes.rank(0)} and {_shown(other.get(name))} "
            f"on rank {processes.rank(index)}"
        )


def _shown(layer: Any) -> str:
    if layer is None:
        return "not there"
    shape, size = layer
    return f"of shape {shape}" + ("" if size == 1 else f" in blocks of {size}")


def _why_not(layer: SparseModule) -> str:
    """Why a layer cannot be given another pattern; empty where it can."""
    if "weight_values" not in layer._parameters:
        return "its weight_values is parametrized or pruned by torch"
    if is_held(layer.weight_values):
        return "something holds the accumulator of its gradient, such as a hook on it"
    return why_fixed(layer.weight_values) or ""


def _refuse_fixed(processes: Processes, names: list[str], reasons: list[str]) -> None:
    """Raises ValueError in all processes where one of them cannot take another pattern."""
    for rank, theirs in enumerate(processes.gather_objects(reasons)):
        for name, reason in zip(names, theirs, strict=True):
            if reason:
                raise ValueError(
                    f"layer {name!r}: its pattern differs between processes, and rank "
                    f"{processes.rank(rank)} cannot take another: {reason}; build the model from "
                    "the same seed everywhere"
                )


def _share(processes: Processes, layer: SparseModule, is_first: bool, blocks: int) -> None:
    crow, col, values = layer.crow_indices, layer.col_indices, layer.weight_values.detach()
    # Copies: what a collective writes to, or may still read, is no pattern of a layer.
    sent = [crow.clone(), col.clone(), values.clone()]
    if not is_first:
        sent[1:] = [col.new_empty(blocks), values.new_empty(blocks, layer.block_size)]
    for tensor in sent:
        processes.broadcast(tensor)
    if not is_first:
        layer.replace_topology(*sent)
