"""What a CUDA graph of a step takes as given: addresses and numbers that it has for always.

Before each replay all of it is looked at again. None of this asks the device for anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.backends.address import storage_address
from dsr_kernels.backends.cuda.tensor_cores import tf32_allowed
from dsr_kernels.nn import SparseModule

Look = list[Any]  # to be compared with another one by ==
PLAIN = {bool, int, float, type(None)}  # types of attributes that a forward pass may go by


def look_of_batch(batch: Sequence[Tensor]) -> Look:
    return [(t.shape, t.stride(), t.dtype, t.requires_grad) for t in batch]


def look_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> Look:
    """Of all that a step of `model` reads and writes, beside its batch.

    Ids are of objects that live as long as the graph, or whose memory does: one that follows at the
    same place with the same address may be taken for it.
    """
    return [
        *_switches(),
        *_of_model(model, optimizer),
        *_of_optimizer(optimizer),
        *_of_scaler(scaler),
    ]


def place_of(tensor: Tensor) -> tuple[int, ...]:
    """The tensor and where its memory is. A data_ptr would end the sharing of index tensors."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return (id(tensor),)
    offset = int(tensor.storage_offset())
    return id(tensor), storage_address(tensor), offset, tensor.numel()


def numbers_of(module: nn.Module) -> dict[str, Any]:
    """A module's attributes that are plain numbers, such as a dropout's p."""
    return {key: value for key, value in module.__dict__.items() if type(value) in PLAIN}


def _switches() -> Iterator[Any]:
    """What of torch's decides which kernels run."""
    cudnn = torch.backends.cudnn
    yield torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    yield torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    yield torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()
    yield cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    yield tf32_allowed(False), tf32_allowed(True), torch.are_deterministic_algorithms_enabled()


def _of_model(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for module in model.modules():
        yield id(module), list(numbers_of(module).items())  # whether it trains is one of them
        for parameter in module._parameters.values():
            if parameter is not None:
                yield place_of(parameter), parameter.requires_grad
                # What the optimizer does not clear, a backward pass adds to where it is.
                if id(parameter) not in trained and parameter.grad is not None:
                    yield place_of(parameter.grad)
        for buffer in module._buffers.values():
            if buffer is not None:
                yield place_of(buffer)
        if isinstance(module, SparseModule):
            yield id(module.pattern())  # refuses one that something else has written to


def _of_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    for group in optimizer.param_groups:
        yield [id(parameter) for parameter in group["params"]]
        for key, value in group.items():
            if key != "params":
                yield key, _plain(value)
    # An optimizer that loads gets another dict. One that has no state yet makes it in a step.
    yield id(optimizer.state), len(optimizer.state)
    for held in optimizer.state.values():
        for key, value in held.items() if isinstance(held, dict) else ():
            if isinstance(value, Tensor):
                yield key, place_of(value)
    for hooks in hooks_of(optimizer):
        yield [id(hook) for hook in hooks.values()]


def _of_scaler(scaler: torch.amp.GradScaler) -> Iterator[Any]:
    if scaler.is_enabled():
        scale = scaler._get_scale_async()
        yield None if scale is None else place_of(scale)
        yield scaler.get_growth_factor(), scaler.get_backoff_factor(), scaler.get_growth_interval()


def hooks_of(optimizer: torch.optim.Optimizer) -> list[dict[int, Any]]:
    """Those that run in a step."""
    names = "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"
    return [getattr(optimizer, name, {}) for name in names]


def _plain(value: Any) -> Any:
    """A number as it is, a tensor as a place; nan equals itself, as it would not by ==."""
    if isinstance(value, Tensor):
        return place_of(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if value is None or isinstance(value, bool | int | float | complex | str):
        return type(value), value
    return id(value)
