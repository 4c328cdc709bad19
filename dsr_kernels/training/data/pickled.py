"""Reads a pickle of plain containers and arrays, as CIFAR's batches are, and constructs no more.

What a pickle calls and sets can make NumPy read memory of the pickle's choosing. So in the place of
arrays and dtypes stand objects that only record what a pickle says of them. `array_of` makes an
array of that, once it fits.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np

ARRAY, DTYPE, BYTES = ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")
TYPES = frozenset(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)) | {"f4", "f8"}
ORDERS = "|<>="
# Opcodes that no such pickle has: of other objects, and of memory as large as it says.
REFUSED = (
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.PERSID, pickle.BINPERSID),
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)


class _Recorded:
    __slots__ = ("args", "state")

    def __init__(self, *args: Any) -> None:
        self.args, self.state = args, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(_Recorded):
    __slots__ = ()


class Array(_Recorded):
    """What a pickle says of an array."""

    __slots__ = ()


class _Bytes(_Recorded):
    """How protocol 2 writes bytes: _codecs.encode(text, "latin1")."""

    __slots__ = ()

    def __new__(cls, text: Any, encoding: Any) -> Any:
        if type(text) is not str or encoding != "latin1":
            raise pickle.UnpicklingError("it holds bytes that are no text in latin1")
        return text.encode("latin1")


class _Unpickler(pickle._Unpickler):  # type: ignore[misc, name-defined]
    """In Python: the compiled one takes as much memory as the number of an entry asks for."""

    dispatch = {  # noqa: RUF012
        code: load
        for code, load in pickle._Unpickler.dispatch.items()  # type: ignore[attr-defined]
        if code not in {opcode[0] for opcode in REFUSED}
    }

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module.endswith("core.multiarray"):
            return Array
        if (module, name) in (ARRAY, DTYPE, BYTES):
            return {ARRAY: Array, DTYPE: _Dtype, BYTES: _Bytes}[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load(raw: bytes) -> Any:
    """What is pickled: containers, text as bytes, numbers, and `Array`s. Raises nearly anything."""
    return _Unpickler(io.BytesIO(raw), encoding="bytes").load()


def array_of(recorded: Array) -> np.ndarray:
    """Raises ValueError where what is recorded is no array of numbers, all of which are there."""
    try:
        _, shape, dtype, by_columns, data = recorded.state
        kind = _type_of(dtype)
    except (TypeError, ValueError, IndexError, AttributeError):
        raise ValueError("it holds an array of no numbers") from None
    whole = type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
    if not whole or type(data) is not bytes or math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"it holds an array of {kind} whose memory is not that of its shape")
    flat = np.frombuffer(data, kind) if data else np.zeros(0, kind)
    return flat.reshape(shape, order="F" if by_columns else "C")


def _type_of(dtype: _Dtype) -> np.dtype:
    if type(dtype) is not _Dtype:
        raise TypeError
    code, order = (_text(each) for each in (dtype.args[0], dtype.state[1]))
    if code not in TYPES or len(order) != 1 or order not in ORDERS:
        raise ValueError
    return np.dtype(order + code)


def _text(name: Any) -> str:
    """Python 2 wrote bytes."""
    return name.decode("ascii") if type(name) is bytes else str(name)
