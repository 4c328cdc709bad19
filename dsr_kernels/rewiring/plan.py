"""The native engine's plan of one rewire, on the device that holds the layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsr_kernels.backends import native
from dsr_kernels.backends.native import _C
from dsr_kernels.rewiring.layers import SparseLayer

CPU = torch.device("cpu")


def open_plan(layers: list[SparseLayer], judged: list[Tensor]) -> Any:
    """A `RewirePlan` of `_C` or `_cuda`: the same methods and the same results, bit for bit.

    `judged` holds what each layer's entries (or blocks) are judged by. The plan keeps that and the
    patterns, which must stay as they are until it has been applied. Raises ValueError for layers
    on several devices, for NaN and infinite weights (`_cuda`: when the plan prunes);
    NotImplementedError for layers on a GPU where this build has no CUDA kernels.
    """
    device = _common_device(layers)
    _check_kernels(device)
    described = [_describe(layer, score) for layer, score in zip(layers, judged, strict=True)]
    layer_tuples = [layer for layer, _ in described]
    on_cpu = device.type == "cpu"
    plan = _open_on_cpu(layer_tuples) if on_cpu else _open_on_gpu(layer_tuples, device)
    return _Plan(plan, [kept for _, kept in described])


class _Plan:
    """The native plan, and the tensors whose addresses it has."""

    def __init__(self, native: Any, kept: list) -> None:
        self._native = native
        self._kept = kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)


def _common_device(layers: list[SparseLayer]) -> torch.device:
    for layer in layers[1:]:
        first = layers[0]
        if layer.weight_values.device != first.weight_values.device:
            raise ValueError(
                f"layers {first.name!r} and {layer.name!r}: expected all layers on one device, got "
                f"{first.weight_values.device} and {layer.weight_values.device}"
            )
    return layers[0].weight_values.device if layers else CPU


def _check_kernels(device: torch.device) -> None:
    if device.type != "cpu" and native._cuda is None:
        raise NotImplementedError(
            f"rewiring layers on {device} needs the CUDA kernels, which this build of dsr_kernels "
            "lacks: install it anew where there is nvcc, or move the model to the CPU for the "
            "rewire"
        )


def _open_on_cpu(layers: list[tuple]) -> _C.RewirePlan:
    return _C.RewirePlan(layers, torch.get_num_threads())


def _open_on_gpu(layers: list[tuple], device: torch.device) -> Any:
    workspaces = []

    def allocate(size: int) -> int:
        workspaces.append(torch.empty(size, dtype=torch.uint8, device=device))
        return workspaces[-1].data_ptr()

    return native._cuda.RewirePlan(layers, *_queue(device), allocate)


def _queue(device: torch.device) -> tuple[int, int]:
    """(device, stream): what is done there is done in the order of torch's own work."""
    if device.type == "cpu":
        return 0, 0  # the emulator's
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _describe(layer: SparseLayer, judged: Tensor) -> tuple[tuple, list[Tensor]]:
    """What the native plan is told of a layer, and the tensors that must live as long as it."""
    crow, col = layer.pattern_of_blocks
    described = (
        layer.name,
        layer.module.weight_shape[0],
        layer.module.row_length // layer.block,
        col.numel(),
        crow.data_ptr(),
        col.data_ptr(),
        judged.data_ptr(),
        str(judged.dtype).removeprefix("torch."),
        layer.index,
    )
    return described, [crow, col, judged]
