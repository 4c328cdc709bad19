"""What a forward reads while it is recorded, and the conditions that this makes."""

from __future__ import annotations

import builtins
import contextlib
import inspect
import sys
from collections.abc import Iterable, Iterator
from types import MethodType
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
    # (attribute, how to compare it, with what): "==", "is" or "is not True"; "missing", or "not its
    # own" where its class has it; or the dict of the module that has it, and whether it is None
    # there. "global": the path of a variable of a module of Python, (the module, what it is).
    reads: tuple[tuple[str, str, Any], ...]


Reads = dict[nn.Module, set[str]]
CHILDREN = ("_modules", "children", "named_children")  # what they give are the keys of a module
WALKING = (
    *("modules", "named_modules", "parameters", "named_parameters", "buffers", "named_buffers"),
    *("apply", "state_dict", "load_state_dict", "train", "eval", "requires_grad_", "zero_grad"),
    *("to", "cpu", "cuda", "half", "float", "double", "bfloat16", "type", "add_module"),
    *("register_module", "register_parameter", "register_buffer"),
)


@contextlib.contextmanager
def recording(reads: Reads, within: Iterable[nn.Module]) -> Iterator[None]:
    """Notes the attributes that are read of each module.

    Of those that are not among `within`, which are not traced through, only reads by code that is
    not torch's count. What such code reads with a special meaning is noted with "()" behind it.
    """
    kinds = {m: type(m) for m in reads if not isinstance(m, torch.jit.ScriptModule)}
    through = set(within)
    try:
        for module, kind in kinds.items():
            try:
                object.__setattr__(module, "__class__", _noting(kind, reads, through))
            except TypeError:
                raise NotTraceable(f"goes through a {kind.__name__}, which is closed") from None
        yield
    finally:
        for module, kind in kinds.items():
            object.__setattr__(module, "__class__", kind)


def _noting(kind: Any, reads: Reads, within: set[nn.Module]) -> type:
    def note(self: nn.Module, name: str) -> Any:
        if not name.startswith("__") and self in reads:
            home = str(sys._getframe(1).f_globals.get("__name__", ""))
            if not home.startswith(("torch.", "dsr_kernels.fusing.")):
                reads[self].update((name, f"{name}()"))
            elif self in within:
                reads[self].add(name)
        return kind.__getattribute__(self, name)

    names = {"__getattribute__": note, "__module__": kind.__module__, "plain_class": kind}
    return type(kind.__name__, (kind,), names)


@contextlib.contextmanager
def asking_types(modules: Iterable[nn.Module], reads: Reads) -> Iterator[None]:
    """isinstance, in the code that is recorded, knows the inputs of layers for tensors.

    Modules that are asked what they are get a condition.
    """

    def asked(value: Any, kinds: Any) -> bool:
        if builtins.isinstance(value, nn.Module) and value in reads:
            reads[value].add("isinstance()")
        return _isinstance(value, kinds)

    scopes = {}
    for module in modules:
        for function in reading.functions(module):
            if "isinstance" in function.__code__.co_names:
                scopes[id(function.__globals__)] = function.__globals__
    kept = {key: scope.get("isinstance", MISSING) for key, scope in scopes.items()}
    try:
        for scope in scopes.values():
            scope["isinstance"] = asked
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
    """Raises NotTraceable where the code has changed modules or their lists; they are put right."""
    modules = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
    own = [m.__dict__ for m in modules]
    own += [getattr(m, kind) for m in modules for kind in HELD_IN]
    kept = [(each, dict(each)) for each in own]
    members = [value for _, before in kept for value in before.values()]
    grads = [(v, v.requires_grad) for v in members if isinstance(v, nn.Parameter)]
    kinds = {kind for module in modules for kind in type(module).__mro__}
    members += [value for kind in kinds for value in vars(kind).values()]
    lists = [(v, _copied(v)) for v in members if type(v) in (list, dict, set) and is_value(v)]
    try:
        yield
    finally:
        changed = [(v, before) for v, before in lists if v != before]
        for value, before in changed:
            value.clear()
            value.extend(before) if isinstance(value, list) else value.update(before)
        others = [(each, before) for each, before in kept if not _same(each, before)]
        for each, before in others:
            each.clear()
            each.update(before)
        switched = [(p, before) for p, before in grads if p.requires_grad != before]
        for parameter, before in switched:
            parameter.requires_grad = before
    if changed or others or switched:
        raise NotTraceable("changes attributes")


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return list(one) == list(other) and all(one[key] is other[key] for key in one)


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
    for name in sorted(n for n in names if not n.endswith("()")):
        by_user = f"{name}()" in names
        if by_user and name in WALKING and hasattr(nn.Module, name):
            raise NotTraceable(f"calls {name} of a module")
        if name in machinery and name != "training":
            if by_user and name not in CHILDREN:
                raise NotTraceable(f"reads {name} of a module")
            continue
        held = [kind for kind in HELD_IN if name in getattr(module, kind)]
        if held:
            found.append((name, held[0], getattr(module, held[0])[name] is None))
        elif name in module.__dict__:
            found.append(_own(name, module.__dict__[name]))
        else:
            member = inspect.getattr_static(type(module), name, MISSING)
            if member is MISSING:
                if by_user:
                    found.append((name, "missing", None))
            elif not callable(member) and not hasattr(member, "__get__"):
                found.append((name, "==", _checked(name, member)))
            elif by_user or callable(member):
                found.append((name, "not its own", None))
    return tuple(found)


def keys_are_read(names: set[str]) -> bool:
    return any(f"{name}()" in names for name in CHILDREN)


def _own(name: str, value: Any) -> tuple[str, str, Any]:
    if not callable(value) or not hasattr(value, "__qualname__"):
        return name, "==", _checked(name, value)
    owner = getattr(value, "__self__", None)
    if isinstance(value, MethodType) and not isinstance(owner, nn.Module | type):
        raise NotTraceable(f"calls {name}, a method of an object")
    return name, "is", value


def _checked(name: str, value: Any) -> Any:
    if not is_value(value):
        raise NotTraceable(f"reads {name}, a {type(value).__name__}")
    return _copied(value)
