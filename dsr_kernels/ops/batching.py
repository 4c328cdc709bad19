"""What torch.vmap makes of our operations.

Where only activations have the further dimension, images of all its elements are one batch: one
call. Where values, a pattern or a result per weight have it too, there is a call for each element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dsr_kernels.ops import library

# Of each argument of an op: where a tensor's further dimension is. Else None, or as many in a list.
Dims = Sequence[Any]


def batch_op(name: str, makes_images: bool) -> None:
    """Registers what vmap does for an op of `library.NAMESPACE`, whose first argument is images.

    makes_images: whether its result is images, too, each made of the one in its place.
    """
    op = getattr(torch.ops.dsr_kernels, name).default

    def call(info: Any, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
        first, *others = in_dims
        if makes_images and not any(isinstance(dim, int) for dim in others):
            return _as_one_batch(op, first, *args), 0
        return _one_by_one(op, info.batch_size, in_dims, args), 0

    torch.library.register_vmap(f"dsr_kernels::{name}", call, lib=library.NAMESPACE)


def _as_one_batch(op: Callable[..., Tensor], dim: int, images: Tensor, *others: Any) -> Tensor:
    many = images.movedim(dim, 0)
    return op(many.flatten(0, 1), *others).unflatten(0, many.shape[:2])


def _one_by_one(op: Callable[..., Tensor], size: int, dims: Dims, args: Sequence[Any]) -> Tensor:
    if not size:
        raise NotImplementedError(
            f"{op}: torch.vmap over a dimension of size 0 is not supported here; leave the call out"
        )
    pairs = tuple(zip(args, dims, strict=True))
    return torch.stack(
        [
            op(*(a.select(dim, i) if isinstance(dim, int) else a for a, dim in pairs))
            for i in range(size)
        ]
    )
