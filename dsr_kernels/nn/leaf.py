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
