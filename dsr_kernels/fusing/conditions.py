"""What a forward reads while it is recorded, and the conditions that this makes."""

from __future__ import annotations

import builtins
import contextlib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from dsr_kernels.fusing import reading

BASICS = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device)
HELD_IN = ("_modules", "_parameters", "_buffers")
MISSING = object()


class NotTraceable(Exception):
    """Says why, as the end of a sentence about the forward."""


class Condition(NamedTuple):
    """What a module that was traced through must be like. `path` is "" for the module itself."""

    path: str
    kind: type | None  # its class, unfused; None: any
    keys: tuple[str, ...] | None  # of its children, if it is a container of torch.nn
    # (attribute, how to compare it, with what): "==", "is" or "is not True"; or the dict of the
    # module that has it, and whether it is None there.
    reads: tuple[tuple[str, str, Any], ...]


@contextlib.contextmanager
def recording(reads: dict[nn.Module, set[str]]) -> Iterator[None]:
    """Notes the attributes that are read of each module."""
    kinds = {module: type(module) for module in reads}
    try:
        for module, kind in kinds.items():
            object.__setattr__(module, "__class__", _noting(kind, reads))
        yield
    finally:
        for module, kind in kinds.items():
            object.__setattr__(module, "__class__", kind)


def _noting(kind: Any, reads: dict[nn.Module, set[str]]) -> type:
    def note(self: nn.Module, name: str) -> Any:
        if not name.startswith("__") and self in reads:
            reads[self].add(name)
        return kind.__getattribute__(self, name)

    names = {"__getattribute__": note, "__module__": kind.__module__, "plain_class": kind}
    return type(kind.__name__, (kind,), names)


@contextlib.contextmanager
def asking_types(modules: Iterable[nn.Module]) -> Iterator[None]:
    """isinstance, in the code that is recorded, knows the inputs of layers for tensors."""
    scopes = {}
    for module in modules:
        for function in reading.functions(module):
            if "isinstance" in function.__code__.co_names:
                scopes[id(function.__globals__)] = function.__globals__
    kept = {key: scope.get("isinstance", MISSING) for key, scope in scopes.items()}
    try:
        for scope in scopes.values():
            scope["isinstance"] = _isinstance
        yield
    finally:
        for key, scope in scopes.items():
            if kept[key] is MISSING:
                del scope["isinstance"]
            else:
                scope["isinstance"] = kept[key]


def _isinstance(value: Any, kinds: Any) -> bool:
    if not builtins.isinstance(value, fx.Proxy):
        return builtins.isinstance(value, kinds)
    if value.node.op not in ("placeholder", "call_module") or builtins.isinstance(
        value, fx.proxy.Attribute
    ):
        raise NotTraceable("asks what something is")
    kinds = kinds if builtins.isinstance(kinds, tuple) else (kinds,)
    return any(kind is Tensor for kind in kinds)


@contextlib.contextmanager
def unchanged(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Raises NotTraceable where the code has changed lists and the like; they are put right."""
    kept = [
        (value, _copied(value))
        for module in modules
        for name, value in module.__dict__.items()
        if not name.startswith("_") and type(value) in (list, dict, set) and is_value(value)
    ]
    try:
        yield
    finally:
        changed = [(value, before) for value, before in kept if value != before]
        for value, before in changed:
            value.clear()
            value.extend(before) if isinstance(value, list) else value.update(before)
    if changed:
        raise NotTraceable("changes attributes")


def is_value(value: Any) -> bool:
    if isinstance(value, BASICS):
        return True
    if type(value) in (list, tuple, set, frozenset):
        return all(map(is_value, value))
    return type(value) is dict and all(is_value(each) for pair in value.items() for each in pair)


def _copied(value: Any) -> Any:
    if type(value) is dict:
        return {key: _copied(each) for key, each in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(_copied, value))
    return value


def conditions_on(module: nn.Module, names: set[str]) -> tuple[tuple[str, str, Any], ...]:
    """(attribute, how, with what) for what was read of `module`. Raises NotTraceable."""
    found: list[tuple[str, str, Any]] = []
    machinery = vars(nn.Module())
    for name in sorted(names):
        if name in machinery and name != "training":
            continue
        held = [kind for kind in HELD_IN if name in getattr(module, kind)]
        if held:
            found.append((name, held[0], getattr(module, held[0])[name] is None))
            continue
        if name not in module.__dict__:
            member = inspect.getattr_static(type(module), name, MISSING)
            if member is MISSING or callable(member) or hasattr(member, "__get__"):
                continue  # code of the class, or an attribute that is not there
            found.append((name, "==", _checked(name, member)))
        elif callable(value := module.__dict__[name]) and hasattr(value, "__qualname__"):
            found.append((name, "is", value))
        else:
            found.append((name, "==", _checked(name, value)))
    return tuple(found)


def _checked(name: str, value: Any) -> Any:
    if not is_value(value):
        raise NotTraceable(f"reads {name}, a {type(value).__name__}")
    return _copied(value)
