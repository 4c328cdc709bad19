"""Watches the code that runs while a forward is recorded.

Whatever a name stands for, the code behind it is seen here when it runs: its text is read as that
of a forward, the globals and attributes of classes that it loads become conditions, and functions
whose answer is another one each time are refused.
"""

from __future__ import annotations

import dis
import enum
import functools
import gc
import inspect
import sys
from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.fusing import reading
from dsr_kernels.fusing.conditions import BASICS, MISSING, Condition, NotTraceable, is_value

# Of the standard library, what answers the same each time, and C functions as good.
SAME_EACH_TIME = {
    *("_abc", "_collections", "_collections_abc", "_functools", "_operator", "abc", "builtins"),
    *("cmath", "collections", "contextlib", "dataclasses", "enum", "functools", "itertools"),
    *("math", "numbers", "operator", "torch", "types", "typing"),
}
ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
KINDS = (FunctionType, BuiltinFunctionType, type, property, staticmethod, classmethod)
# "LOAD_GLOBAL" or "LOAD_DEREF"; a name, and attributes of it; whether the code keeps the value
# under another name, or reads an attribute of it by a string.
Load = tuple[str, list[str], bool]


class Watch:
    """Used as a context. Raises NotTraceable in the code that it watches."""

    def __init__(self) -> None:
        self.globals: dict[tuple[str, str], Any] = {}  # (module, path in it) -> value
        self._seen: set[CodeType] = set()
        self._reason: str | None = None

    def __enter__(self) -> Watch:
        self._before, self._collecting = sys.getprofile(), gc.isenabled()
        self._outside = sys._getframe(1)
        gc.disable()  # it would run finalizers in the midst of the code
        sys.setprofile(self._event)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is None or callable(self._before):
            sys.setprofile(self._before)
        else:  # a profiler written in C, which Python cannot put back
            sys.setprofile(None)
            self._before.enable()
        del self._outside
        if self._collecting:
            gc.enable()
        if self._reason is not None:  # the code may have caught it
            raise NotTraceable(self._reason)

    def conditions(self) -> tuple[Condition, ...]:
        reads = tuple(
            (path, "global", (home, value)) for (home, path), value in sorted(self.globals.items())
        )
        return (Condition("", None, None, reads),) if reads else ()

    def _refuse(self, reason: str) -> None:
        self._reason = self._reason or reason
        raise NotTraceable(reason)

    def _event(self, frame: FrameType, event: str, function: Any) -> None:
        if event not in ("call", "c_call"):
            return
        caller = frame.f_back if event == "call" else None
        of_users = is_users(frame) or (caller is not None and is_users(caller))
        if not of_users or self._imports(frame):
            return
        if event == "call":
            self._called(frame)
        else:
            name = getattr(function, "__name__", "")
            if name in reading.ASKED:
                self._refuse(reading.ASKED[name])
            if _home(function) not in SAME_EACH_TIME:
                self._refuse(f"calls {name}, whose answer may be another one each time")

    def _called(self, frame: FrameType) -> None:
        code, home = frame.f_code, str(frame.f_globals.get("__name__", ""))
        if is_users(frame):
            if code not in self._seen:
                self._seen.update(reading.codes(code))
                self._read(frame)
        else:
            top = home.split(".")[0]
            if code.co_name in reading.ASKED:
                self._refuse(reading.ASKED[code.co_name])
            if top in sys.stdlib_module_names and top not in SAME_EACH_TIME:
                self._refuse(f"calls {code.co_name} of {home}")

    def _imports(self, frame: FrameType) -> bool:
        """Whether it runs because a module is imported: once, and beside what is recorded. Torch
        imports some of its own at first use, and others' import hooks run then.
        """
        at: FrameType | None = frame
        while at is not None and at is not self._outside:
            if at.f_globals.get("__name__") == "importlib._bootstrap":
                return True
            at = at.f_back
        return False

    def _read(self, frame: FrameType) -> None:
        code = frame.f_code
        if reason := reading.objection(code):
            self._refuse(reason)
        first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(first, type) and code.co_name != "__new__":
            self._refuse(f"calls {code.co_name}, which may read attributes of its class")
        for kind, names, handed_on in loads(code):
            scope = frame.f_globals if kind == "LOAD_GLOBAL" else frame.f_locals
            if names[0] in scope:
                value = self._load(frame, kind, names)
                if handed_on and isinstance(value, type):
                    self._refuse(f"goes on with {names[-1]}, whose attributes it may read")

    def _load(self, frame: FrameType, kind: str, names: list[str]) -> Any:
        """The value. What it is becomes a condition, or a reason to refuse."""
        scope = frame.f_globals if kind == "LOAD_GLOBAL" else frame.f_locals
        value, path = scope[names[0]], names[0]
        for name in names[1:]:
            if isinstance(value, FunctionType) and not name.startswith("__"):
                self._refuse(f"reads {path}.{name}, an attribute of a function")
            if not isinstance(value, ModuleType | type):
                break
            found = inspect.getattr_static(value, name, MISSING)
            if found is MISSING:
                found = getattr(value, name, MISSING)  # of its __getattr__, or of a metaclass
            if found is MISSING:
                break
            value, path = found, f"{path}.{name}"
        if isinstance(value, torch.dtype) and names[0] == "torch":
            return value
        fixed = isinstance(value, tuple | frozenset) and is_value(value)
        if isinstance(value, (*BASICS, enum.Enum)) or fixed:
            home = str(frame.f_globals.get("__name__"))
            known = getattr(sys.modules.get(home), "__dict__", None) is frame.f_globals
            if kind != "LOAD_GLOBAL" or not known:
                self._refuse(f"reads {path} of a scope that cannot be looked up later")
            self.globals[home, path] = value
        elif not _is_code(value) and not (kind == "LOAD_DEREF" and isinstance(value, nn.Module)):
            self._refuse(f"reads {path}, a {type(value).__name__}")
        return value


def is_users(frame: FrameType) -> bool:
    """Whether its code is neither torch's, nor the standard library's, nor of these rooms."""
    home = str(frame.f_globals.get("__name__", ""))
    top = home.split(".")[0]
    if top == "torch" or home.startswith(("dsr_kernels.fusing.", "namedtuple_")):
        return False
    return top not in sys.stdlib_module_names


def loads(code: CodeType) -> Iterator[Load]:
    """Globals and variables of functions around it that code loads, with attributes of them."""
    for each in reading.codes(code):
        found: tuple[str, list[str]] | None = None
        by_string = False
        for instruction in dis.get_instructions(each):
            name, value = instruction.opname, instruction.argval
            if found is not None and name in ATTRIBUTES:
                found[1].append(str(value))
                continue
            if found is not None:
                yield *found, by_string or name.startswith("STORE_")
                by_string = found[1] in (["getattr"], ["hasattr"])
            else:
                by_string = by_string and name in ("PUSH_NULL", "EXTENDED_ARG")
            around = name in ("LOAD_DEREF", "LOAD_CLASSDEREF") and value in code.co_freevars
            found = None
            if around or name in ("LOAD_GLOBAL", "LOAD_NAME"):
                found = "LOAD_DEREF" if around else "LOAD_GLOBAL", [str(value)]


def _home(function: Any) -> str:
    """The package that a C function is of, or the type that it is a method of."""
    owner = getattr(function, "__self__", None)
    if owner is None:
        owner = getattr(function, "__objclass__", None)
    if owner is None:
        return str(getattr(function, "__module__", "")).split(".")[0]
    if isinstance(owner, ModuleType):
        return owner.__name__.split(".")[0]
    return str((owner if isinstance(owner, type) else type(owner)).__module__).split(".")[0]


def _is_code(value: Any) -> bool:
    """Whether it is no state, but code: what it does is seen when it runs."""
    if isinstance(value, KINDS) or (isinstance(value, ModuleType) and _of_torch(value.__name__)):
        return True
    if isinstance(value, functools.partial | Tensor | nn.Module | torch.Generator):
        return False
    return _of_torch(type(value).__module__) or type(value).__module__ == "typing"


def _of_torch(name: str) -> bool:
    return name.split(".")[0] == "torch"
