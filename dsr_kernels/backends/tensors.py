"""Tensors handed to native code as they are, where torch has a way to read them there.

torch publishes DLPack's C exchange API (2.13 does): a table of functions by which native code that
knows nothing of torch reads a tensor in some 30 ns. Python needs a microsecond for the same. With
an older torch, Python does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from dsr_kernels.backends.address import address
from dsr_kernels.backends.native import _C

_published = getattr(Tensor, "__dlpack_c_exchange_api__", None)
IS_NATIVE: bool = _published is not None and _C.use_exchange_api(_published)


class Look(Protocol):
    """What tensors look like (dtypes, devices, sizes and strides), not what they hold or where."""

    def fits(self, *tensors: Tensor | None) -> bool:
        """Whether these look the same."""


class ComparedLook:
    """A Look by Python's means."""

    def __init__(self, *tensors: Tensor | None) -> None:
        self._seen = [_seen(tensor) for tensor in tensors]

    def fits(self, *tensors: Tensor | None) -> bool:
        try:
            return self._seen == [_seen(tensor) for tensor in tensors]
        except RuntimeError:  # sparse, or nested
            return False


def _seen(tensor: Tensor | None) -> tuple[Any, ...] | None:
    if tensor is None:
        return None
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride()


look_of: Callable[..., Look] = _C.Look if IS_NATIVE else ComparedLook


def share_with(module: Any) -> None:
    """Has another compiled module read tensors, too."""
    if IS_NATIVE:
        module.use_exchange_api(_published)


def taking_tensors(native: Callable[..., None]) -> Callable[..., None]:
    """A native function of tensors, for tensors: it reads them itself, or takes their addresses."""
    if IS_NATIVE:
        return native

    def by_addresses(*args: Any) -> None:
        native(*(address(each) if isinstance(each, torch.Tensor) else each for each in args))

    return by_addresses
