"""Where a model holds its layers beside its registered children, and how they are exchanged there.

Attributes of modules and of other objects, lists, tuples, dicts, sets and functools.partial are
followed. Code is not: a function that closes over a layer, or a method of the layer, would go on
with the old one.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsr_kernels.backends.pattern import Pattern
from dsr_kernels.nn.copies import Lineage

CONTAINERS: tuple[type[Any], ...] = (list, tuple, set, frozenset, deque, dict, partial)
# Not looked into. An optimizer holds parameters on purpose, and is to be built anew. A Pattern and
# a Lineage belong to layers.
ATOMS: tuple[type, ...] = (
    *(str, bytes, int, float, complex, type(None), type, ModuleType, BuiltinFunctionType),
    *(Tensor, torch.optim.Optimizer, torch.Generator, torch.device, torch.dtype),
    *(Pattern, Lineage),
)


class Held(NamedTuple):
    value: Any
    path: str  # such as model.blocks[0]
    code: str | None  # the code that reaches it, such as "a function at model.f"
    plainly: bool  # whether by modules, containers and code alone, not by other objects


def unreachable(
    model: nn.Module, layers: Mapping[nn.Module, Tensor], copies: bool
) -> dict[nn.Module, str]:
    """Why some of `layers` (each with its weight) cannot be exchanged wherever `model` has them.

    `copies` says that the exchange takes place in a copy of the model. There functions still close
    over the modules of the original.
    """
    weights: dict[int, list[nn.Module]] = {}
    for layer, weight in layers.items():
        weights.setdefault(id(weight), []).append(layer)
    found: dict[nn.Module, str] = {}
    seen: dict[tuple[int, bool, bool], Any] = {}  # with the values, so that no id is used twice
    todo = [Held(model, "model", None, True)]
    while todo:
        held = todo.pop()
        value = held.value
        if held.plainly and isinstance(value, Tensor):
            for layer in weights.get(id(value), ()):
                found.setdefault(layer, f"its weight is also held at {held.path}")
        key = (id(value), held.code is not None, held.plainly)
        if isinstance(value, ATOMS) or key in seen:
            continue
        seen[key] = value
        if held.code is not None and isinstance(value, nn.Module) and value in layers:
            found.setdefault(value, f"{held.code} holds it and would go on with the old layer")
        todo.extend(_contents(held, layers, copies))
    return found


def _contents(held: Held, layers: Mapping[nn.Module, Tensor], copies: bool) -> Iterator[Held]:
    """What `held` holds in turn."""
    value, path, code, plainly = held
    if isinstance(value, FunctionType | MethodType | weakref.ref):
        kind = {FunctionType: "a function", MethodType: "a method"}.get(type(value), "a reference")
        for child in _reached_by(value):
            yield Held(child, path, f"{kind} at {path}", plainly)
        return
    if not isinstance(value, CONTAINERS):
        # A method belongs to its object, which is exchanged or copied. So is what that holds.
        copied = copies and code is not None and code.startswith("a function")
        code = code if copied and "hooks[" not in path else None
        plainly = isinstance(value, nn.Module)
    attributes = _attributes(value)
    if isinstance(value, nn.Module):
        attributes |= attributes.pop("_modules", {})
        if value in layers:
            del attributes["_parameters"]  # its own weight is there
    for label, child in (*_items(value), *attributes.items()):
        dot = "" if label.startswith("[") else "."
        yield Held(child, f"{path}{dot}{label}", code, plainly)


def _reached_by(code: Any) -> Iterator[Any]:
    if isinstance(code, MethodType):
        yield code.__self__
    elif isinstance(code, weakref.ref):
        yield code()
    else:
        for cell in code.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not bound yet
                continue
        yield from code.__defaults__ or ()
        yield from (code.__kwdefaults__ or {}).values()


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield (f"[{key!r}]" if isinstance(key, str | int) else "[...]"), child
            yield "[a key]", key
    elif isinstance(value, partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, CONTAINERS):
        yield from ((f"[{i}]", child) for i, child in enumerate(list(value)))


def _attributes(value: Any) -> dict[str, Any]:
    """What an object has as attributes of its own, in slots as well."""
    try:
        attributes = dict(vars(value))
    except TypeError:
        attributes = {}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                attributes[name] = getattr(value, name)
    return attributes


class Exchange:
    """Puts each new module wherever the old one is: called with a value, returns what replaces it.

    Mutable containers and objects stay the same, with other contents.
    """

    def __init__(self, twins: Mapping[nn.Module, nn.Module]) -> None:
        self.twins = twins
        # id -> (the value, that its id is not used twice; what replaces it).
        self.seen: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, nn.Module) and value in self.twins:
            value = self.twins[value]
        if isinstance(value, (*ATOMS, weakref.ref)):
            return value
        if id(value) in self.seen:
            return self.seen[id(value)][1]
        self.seen[id(value)] = value, value
        if isinstance(value, FunctionType | MethodType):
            for child in _reached_by(value):
                self(child)
            return value
        new = self._contents(value)
        self.seen[id(value)] = value, new
        for name, child in _attributes(value).items():
            other = self(child)
            if other is not child or new is not value:
                object.__setattr__(new, name, other)
        return new

    def _contents(self, value: Any) -> Any:
        """The container with its contents exchanged: itself, or a new one if it is immutable."""
        if isinstance(value, dict):
            old: list[Any] = [part for pair in value.items() for part in pair]
        elif isinstance(value, partial):
            old = [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, CONTAINERS):
            old = [*value]
        else:
            return value
        new = [self(part) for part in old]
        if all(a is b for a, b in zip(old, new, strict=True)):
            return value
        kind: Any = type(value)
        if isinstance(value, partial):
            count = 1 + len(value.args)
            return kind(*new[:count], **dict(zip(value.keywords, new[count:], strict=True)))
        if isinstance(value, tuple):
            return kind(*new) if hasattr(value, "_fields") else kind(new)
        if isinstance(value, frozenset):
            return kind(new)
        value.clear()
        if isinstance(value, dict):
            value.update(zip(new[::2], new[1::2], strict=True))
        elif isinstance(value, set):
            value.update(new)
        else:
            value.extend(new)
        return value
