"""The native engine's plan of one rewire, on the device that holds the layers."""

from __future__ import annotations

from typing import Any

import torch

from dsr_kernels import _C, _native
from dsr_kernels.rewiring.layers import SparseLayer

CPU = torch.device("cpu")


def open_plan(layers: list[SparseLayer]) -> Any:
    """A `RewirePlan` of `_C` or `_cuda`: the same methods and the same results, bit for bit.

    It refers to the layers' tensors, which must stay as they are until it has been applied. Raises
    ValueError for layers on several devices, for NaN and infinite weights (`_cuda`: when the plan
    prunes); NotImplementedError for layers on a GPU where this build has no CUDA kernels.
    """
    device = _common_device(layers)
    return _open_on_cpu(layers) if device.type == "cpu" else _open_on_gpu(layers, device)


def _common_device(layers: list[SparseLayer]) -> torch.device:
    for layer in layers[1:]:
        first = layers[0]
        if layer.values.device != first.values.device:
            raise ValueError(
                f"layers {first.name!r} and {layer.name!r}: expected all layers on one device, got "
                f"{first.values.device} and {layer.values.device}"
            )
    return layers[0].values.device if layers else CPU


def _open_on_cpu(layers: list[SparseLayer]) -> _C.RewirePlan:
    return _C.RewirePlan([_describe(layer) for layer in layers], torch.get_num_threads())


def _open_on_gpu(layers: list[SparseLayer], device: torch.device) -> Any:
    if _native._cuda is None:
        raise NotImplementedError(
            f"rewiring layers on {device} needs the CUDA kernels, which this build of dsr_kernels "
            "lacks: install it anew where there is nvcc, or move the model to the CPU for the "
            "rewire"
        )
    workspaces = []

    def allocate(size: int) -> int:
        workspaces.append(torch.empty(size, dtype=torch.uint8, device=device))
        return workspaces[-1].data_ptr()

    described = [_describe(layer) for layer in layers]
    return _native._cuda.RewirePlan(described, *_queue(device), allocate)


def _queue(device: torch.device) -> tuple[int, int]:
    """(device, stream): what is done there is done in the order of torch's own work."""
    if device.type == "cpu":
        return 0, 0  # the emulator's
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _describe(layer: SparseLayer) -> tuple:
    crow, col = layer.pattern
    return (
        layer.name,
        layer.module.weight_shape[0],
        layer.module.row_length,
        layer.values.numel(),
        crow.data_ptr(),
        col.data_ptr(),
        layer.values.data_ptr(),
        str(layer.values.dtype).removeprefix("torch."),
        layer.index,
    )
