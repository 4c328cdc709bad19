"""Reads the code of forwards for what a trace would take for always, though it may change.

torch.fx runs a forward once and records what happens to its inputs. Whatever else the code asks
(the time, random numbers, whether gradients are on) has one answer in the record, and what it does
beside computing (contexts, attributes that it sets) is lost. Such code is not traced.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

# Names that code must not use, and what it would use them for.
ASKED = {
    "is_tensor": "asks what its input is",
    "is_grad_enabled": "asks whether gradients are on",
    "is_inference_mode_enabled": "asks whether gradients are on",
    "is_autocast_enabled": "asks for autocast",
    "is_compiling": "asks whether it is compiled",
    "is_exporting": "asks whether it is exported",
    "get_default_dtype": "asks for the default dtype",
    "no_grad": "switches gradients",
    "enable_grad": "switches gradients",
    "set_grad_enabled": "switches gradients",
    "inference_mode": "switches gradients",
    "autocast": "switches autocast",
    "checkpoint": "calls checkpoint",
    "checkpoint_sequential": "calls checkpoint",
    "__class__": "asks what something is",
    "__dict__": "reads its attributes as a dict",
    "vars": "reads its attributes as a dict",
    "print": "prints",
    "open": "opens a file",
    "input": "asks for input",
    "environ": "reads the environment",
    "getenv": "reads the environment",
    "random": "draws random numbers",
    "perf_counter": "asks for the time",
    "monotonic": "asks for the time",
    "eval": "calls eval",
    "exec": "calls exec",
    "globals": "calls globals",
    "locals": "calls locals",
    "setattr": "sets attributes",
    "warn": "warns",
}
OPCODES = {
    "BEFORE_WITH": "has a with statement",
    "SETUP_WITH": "has a with statement",
    "LOAD_SPECIAL": "has a with statement",
    "PUSH_EXC_INFO": "has a try statement",
    "SETUP_FINALLY": "has a try statement",
    "STORE_ATTR": "sets attributes",
    "DELETE_ATTR": "deletes attributes",
    "STORE_GLOBAL": "sets globals",
    "IMPORT_NAME": "imports",
    "YIELD_VALUE": "is a generator",
    "GET_AWAITABLE": "is a coroutine",
}
NAMED = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_NAME")
TYPES = ("type", "issubclass", "id", "callable")  # as globals; `x.type()` is a method


def why_not(module: nn.Module) -> str | None:
    """Why the forward of `module` cannot be traced, if its code, or code it calls, says so."""
    if not isinstance(inspect.getattr_static(type(module), "forward", None), FunctionType):
        return "is not a plain function"
    for function in functions(module):
        if reason := objection(function.__code__):
            return reason
    return None


def functions(module: nn.Module) -> list[FunctionType]:
    """The forward of `module` and the Python functions outside torch that it names, and theirs."""
    forward = inspect.getattr_static(type(module), "forward", None)
    found: list[FunctionType] = []
    todo: list[Any] = [forward]
    while todo:
        each = todo.pop()
        if not isinstance(each, FunctionType) or each in found:
            continue
        if each is not forward and (each.__module__ or "").split(".")[0] == "torch":
            continue
        found.append(each)
        todo += _named_by(each, type(module))
    return found


def _named_by(function: FunctionType, kind: type) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not bound yet
            continue
    for code in codes(function.__code__):
        for name in code.co_names:
            yield function.__globals__.get(name)
            member = inspect.getattr_static(kind, name, None)
            yield member.fget if isinstance(member, property) else member
            if isinstance(member, staticmethod | classmethod):
                yield member.__func__


def codes(code: CodeType) -> Iterator[CodeType]:
    """The code and that of functions and generators in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def objection(code: CodeType) -> str | None:
    """Why code cannot be traced, if its text says so."""
    for each in codes(code):
        nested = each is not code
        for instruction in dis.get_instructions(each):
            name, value = instruction.opname, instruction.argval
            if name in OPCODES and not (nested and name == "YIELD_VALUE"):  # any(... for ...)
                return OPCODES[name]
            if name == "LOAD_GLOBAL" and value in TYPES:
                return "asks what something is"
            if name in NAMED and value in ASKED:
                return ASKED[value]
    return None
