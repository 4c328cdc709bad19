"""What is checked of state.pt before a run takes anything of it: keys, types, shapes.

Its bytes are what the manifest says, but whoever changed the file can sign it anew. All functions
raise WrongState, which names the key, what came and what was expected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from dsr_kernels.errors import shown
from dsr_kernels.training.run.position import Position

NEEDED = ("recipe", "data", "position", "lengths", "optimizer", "rewirer", "exploration", "random")
TABLES = ("metrics", "timings", "rewires")
# Of a group of the optimizer: what follows from the iteration and the device.
FREE_SETTINGS = {"params", "lr", "fused", "foreach"}
# What loading a part raises where it holds something else than it should.
MISFITS = (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError)


class WrongState(ValueError):
    """state.pt holds something else than a run writes."""


def check_types(state: Mapping[Any, Any]) -> None:
    """Of the keys that a run knows; others are passed over, and none has to be there."""
    for key, check in CHECKS.items():
        if key in state:
            check(key, state[key])


def check_keys(
    state: Mapping[Any, Any], needed: Collection[str] = NEEDED, name: str = "it"
) -> None:
    for key in needed:
        if key not in state:
            found = ", ".join(sorted(map(str, state)))
            raise WrongState(f"{name} has no {key!r}, but {found or 'no keys'}")


def check_presence(part: object, expected: bool) -> None:
    """Of what a run has or has not, by its recipe."""
    if (part is not None) != expected:
        raise WrongState(f"expected {'its state' if expected else 'None'}, got {shown(part)}")


def check_position(position: Position, epoch_length: int) -> None:
    """Raises WrongState where its numbers contradict each other, or the length of an epoch."""
    now = position
    before = now.epoch * epoch_length
    if now.batch > epoch_length or now.iteration != before + now.batch:
        raise WrongState(
            f"expected iteration {before} + batch, of epochs of {epoch_length} batches, got "
            f"iteration {now.iteration}, batch {now.batch} of epoch {now.epoch}"
        )


def check_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Raises WrongState where `optimizer`, of the recipe, could not go on with the state."""
    own, theirs = optimizer.state_dict()["param_groups"], state.get("param_groups")
    if not isinstance(theirs, list) or len(theirs) != len(own):
        raise _expected("param_groups", f"a list of {len(own)}", theirs)
    for number, (ours, group) in enumerate(zip(own, theirs, strict=True)):
        _check_group(f"param_groups[{number}]", ours, group)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    held = _dict("state", state.get("state"))
    keys = ("exp_avg", "exp_avg_sq", "step")
    if isinstance(optimizer, torch.optim.SGD):
        keys = ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
    for index, tensors in held.items():
        if type(index) is not int or not 0 <= index < len(parameters):
            raise _expected("state", f"parameters below {len(parameters)}", index)
        _check_tensors(f"state[{index}]", keys, tensors, parameters[index])


def _check_group(name: str, ours: Mapping[str, Any], group: Any) -> None:
    _dict(name, group)
    for key, value in ours.items():
        if key not in group:
            if value is None or value is False:
                continue  # an older torch had no such setting
            raise WrongState(f"{name} has no {key!r}")
        found = group[key]
        if key == "lr":
            _number(f"{name}.lr", found)
        elif key == "params" or key not in FREE_SETTINGS:
            if not _is_like(found, value) or found != value:
                raise _expected(f"{name}.{key}", shown(value), found)
        elif found is not None and type(found) is not bool:
            raise _expected(f"{name}.{key}", "True, False or None", found)


def _is_like(found: Any, value: Any) -> bool:
    """Whether they can be compared: a tensor, say, is no number."""
    if isinstance(value, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(value)
        return same and type(found) is type(value) and all(map(_is_like, found, value))
    numbers = (int, float)
    return type(found) is type(value) or (type(found) in numbers and type(value) in numbers)


def _check_tensors(name: str, keys: Collection[str], tensors: Any, parameter: Tensor) -> None:
    if set(_dict(name, tensors)) != set(keys):
        raise _expected(name, f"the keys {sorted(keys)}", sorted(map(str, tensors)))
    for key, tensor in tensors.items():
        shape = torch.Size() if key == "step" else parameter.shape
        dtype = torch.float32 if key == "step" else parameter.dtype
        like = isinstance(tensor, Tensor) and (tensor.shape, tensor.dtype) == (shape, dtype)
        if not like:
            raise _expected(f"{name}.{key}", f"a tensor {_look(shape, dtype)}", tensor)


def check_weights(weights: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """Raises WrongState for a weight of another dtype, which torch would convert in silence."""
    for name, tensor in weights.items():
        if name in model and model[name].dtype != tensor.dtype:
            raise WrongState(f"{name}: expected {model[name].dtype}, got {tensor.dtype}")


def _position(key: str, value: Any) -> None:
    known = {each.name: each.type for each in fields(Position)}
    if set(_dict(key, value)) != set(known):
        raise _expected(key, f"the keys {sorted(known)}", sorted(map(str, value)))
    for name, kind in known.items():
        if kind == "int":
            _count(f"{key}.{name}", value[name])
        else:
            _number(f"{key}.{name}", value[name])


def _lengths(key: str, value: Any) -> None:
    for name, length in _dict(key, value).items():
        if name not in TABLES:
            raise _expected(key, f"the keys {', '.join(TABLES)}", name)
        _count(f"{key}.{name}", length)
    check_keys(value, TABLES, key)


def _sums(key: str, value: Any) -> None:
    for name, sums in _dict(key, value).items():
        _tensor(f"{key}.{name}", sums, torch.int64)


def _bitmaps(key: str, value: Any) -> None:
    if value is not None:
        for name, bitmap in _dict(key, value).items():
            _tensor(f"{key}.{name}", bitmap, torch.uint8)


def _ranks(key: str, value: Any) -> None:
    if not isinstance(value, list):
        raise _expected(key, "a list", value)
    for rank, own in enumerate(value):
        check_keys(_dict(f"{key}[{rank}]", own), ["random"], f"{key}[{rank}]")
        _bitmaps(f"{key}[{rank}]", own)


def _generator(key: str, value: Any) -> None:
    _tensor(key, value, torch.uint8)


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _expected(key, "a string", value)


def _dict(key: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise _expected(key, "a dict", value)
    return value


def _dict_or_none(key: str, value: Any) -> None:
    if value is not None:
        _dict(key, value)


def _count(key: str, value: Any) -> None:
    if type(value) is not int or value < 0:
        raise _expected(key, "an integer of at least 0", value)


def _number(key: str, value: Any) -> None:
    if type(value) not in (int, float):
        raise _expected(key, "a number", value)


def _tensor(key: str, value: Any, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor) or value.dtype != dtype or value.dim() != 1:
        raise _expected(key, f"a tensor of one dimension, {dtype}", value)


def _expected(key: str, expected: str, found: Any) -> WrongState:
    if isinstance(found, Tensor):
        what = f"a tensor {_look(found.shape, found.dtype)}"
    else:
        what = f"{type(found).__name__} {shown(found)}"
    return WrongState(f"{key}: expected {expected}, got {what}")


def _look(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"of shape {tuple(shape)}, {dtype}"


CHECKS: dict[str, Callable[[str, Any], object]] = {
    "recipe": _text,
    "data": _text,
    "position": _position,
    "lengths": _lengths,
    "sums": _sums,
    "optimizer": _dict,
    "rewirer": _dict_or_none,
    "scaler": _dict,
    "exploration": _bitmaps,
    "ranks": _ranks,
    "random": _generator,
    "cuda_random": _generator,
}
