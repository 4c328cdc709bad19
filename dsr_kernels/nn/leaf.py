"""Giving a Parameter other data, perhaps of another size."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def mode_of(parameter: nn.Parameter) -> AbstractContextManager[None]:
    """The mode in which its data may change: one made under inference_mode stays so, any other is
    to be trained afterwards.
    """
    return nullcontext() if parameter.is_inference() else torch.inference_mode(False)


def ordinary(tensor: Tensor) -> Tensor:
    """A tensor that autograd can use; one made under torch.inference_mode cannot be."""
    return tensor.clone() if tensor.is_inference() else tensor


def why_fixed(tensor: Tensor) -> str | None:
    """Who else would go on with the memory that a tensor has now; None: nobody that can be seen."""
    if tensor.is_cpu and tensor.is_shared():
        return (
            "its tensors are in shared memory, and other processes would keep the old ones; change "
            "it before share_memory(), or change a copy.deepcopy of it"
        )
    if getattr(tensor, "_fsdp_flattened", False):
        return (
            "its values are a view of a parameter of FullyShardedDataParallel, which would keep "
            "the old ones; use dsr_kernels.distributed.DistributedDataParallel"
        )
    return None


def set_data(parameter: nn.Parameter, data: Tensor) -> None:
    """Gives a leaf other data, perhaps of another size, and drops its grad.

    Autograd keeps a leaf's size in its gradient accumulator. That lives as long as any old graph
    does (a loss kept from the last iteration is enough) and is renewed only when the dtype changes.
    So data of another size goes through an empty tensor of another dtype. Data of the same size
    does not: hooks on the accumulator, as DistributedDataParallel has them, stay.
    """
    parameter.grad = None
    if data.shape == parameter.shape and data.dtype == parameter.dtype:
        parameter.data = data
        return
    other = torch.float32 if parameter.dtype == torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=data.device)
    parameter.data = data
