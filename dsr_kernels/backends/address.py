"""The one gate through which an address of a tensor's memory reaches native code.

Native code reads and writes where it is told to. Many tensors have no memory of their own: those on
the meta device, fake ones, functorch's, DTensors and other subclasses, sparse and nested ones. Some
have memory that holds something else than what they stand for: a lazily negated or conjugated
tensor, a quantized one. And a storage may have shrunk since, as off-loading frees it. All of these
are refused here, whatever was checked before.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# What native code knows; no complex numbers, which may be conjugated, and no quantized ones.
DTYPES = {
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    *(torch.int8, torch.uint8, torch.int32, torch.int64),
}
# Whether a tensor shares its memory copy-on-write. torch's stubs do not know these two.
is_shared: Callable[[Tensor], bool] = torch._C._is_cow_tensor  # type: ignore[attr-defined]
# The address of a tensor's storage, not of a view's first element; asks for no memory to write to.
storage_address: Callable[[Tensor], int] = torch._C._data_address  # type: ignore[attr-defined]


def address(tensor: Tensor, name: str = "") -> int:
    """Where the elements of a tensor lie; 0 where it has none.

    Raises TypeError, with the name, for a tensor whose memory does not hold its elements.
    """
    try:
        place = tensor.data_ptr()
    except (RuntimeError, NotImplementedError, ValueError):  # sparse, or stands for another tensor
        raise refusal(tensor, name) from None
    holds = tensor.dtype in DTYPES and not tensor.is_neg() and not tensor.is_nested
    if holds and (place or not tensor.numel()):
        _check_end(tensor, name)
        return place
    raise refusal(tensor, name)


def require_memory(tensor: Tensor, span: int, name: str) -> None:
    """Raises TypeError, with the name, where a plain tensor's storage has been freed or shrunk.

    Of such a tensor nothing else can be wrong, once another of its look was found right. `span` is
    what span_of says of all tensors of that look.
    """
    if tensor.untyped_storage().nbytes() < tensor.storage_offset() * tensor.itemsize + span:
        address(tensor, name)


def span_of(tensor: Tensor) -> int:
    """How many bytes there must be from a tensor's first element on."""
    if tensor.is_contiguous():  # as most are; a loop would take longer than all else here
        return tensor.nbytes
    last = 0
    for length, step in zip(tensor.shape, tensor.stride(), strict=True):
        last += (length - 1) * step
    return (last + 1) * tensor.itemsize


def refuse_without_memory(**tensors: Tensor | None) -> None:
    """Raises TypeError, with its name, for a tensor that has no address: before it is copied."""
    for name, tensor in tensors.items():
        if tensor is not None:
            address(tensor, name)


def _check_end(tensor: Tensor, name: str) -> None:
    """Raises TypeError where the storage ends before the tensor does."""
    held = tensor.untyped_storage().nbytes()
    end = int(tensor.storage_offset()) * tensor.itemsize + span_of(tensor)
    if held < end and tensor.numel():
        raise TypeError(
            f"dsr_kernels: {name or 'a tensor'} of shape {tuple(tensor.shape)}: expected memory of "
            f"at least {end} bytes, got a storage of {held}, whose memory does not hold what it "
            "stands for; give it back what was freed (as by untyped_storage().resize_) first"
        )


def address_to_read(tensor: Tensor) -> int:
    """As `address`, of a tensor that native code only reads.

    torch copies a tensor that shares its memory copy-on-write (see patterns.py) when it gives out
    an address that can be written to. This one leaves it shared.
    """
    try:
        shared = is_shared(tensor)
    except (RuntimeError, NotImplementedError):
        raise refusal(tensor) from None
    if not shared:
        return address(tensor)
    place = storage_address(tensor)
    if not place and tensor.numel():
        raise refusal(tensor)
    _check_end(tensor, "")
    return place + int(tensor.storage_offset()) * tensor.element_size()


def refusal(tensor: Tensor, name: str = "") -> TypeError:
    """What to raise for a tensor that native code cannot have the address of."""
    kind = type(tensor).__name__
    of = f"{name}: " if name else ""
    if tensor.dtype not in DTYPES and not (tensor.is_complex() or tensor.is_quantized):
        known = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in DTYPES))
        return TypeError(f"dsr_kernels: {of}expected one of {known}, got {tensor.dtype}")
    return TypeError(
        f"dsr_kernels: {of}expected a tensor with memory of its own, got {_article(kind)} on "
        f"{tensor.device} whose memory does not hold what it stands for (a wrapper around other "
        "tensors, a fake, sparse, nested, quantized or lazily negated one); use a plain tensor"
    )


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"
