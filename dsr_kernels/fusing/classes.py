"""Classes whose forward is a fused one: a module stays the same object and gets such a class.

A fused class is a subclass of the module's own, under its name, and binds nothing of the module. So
copies, pickles and state_dicts are as before. Its text is kept in it, from which a pickle makes the
class again.
"""

from __future__ import annotations

import importlib
import inspect
import linecache
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from dsr_kernels.fusing.conditions import MISSING, Condition
from dsr_kernels.fusing.plain import is_as_written, is_tensor, others_look_on

VERSION = 2  # of what the texts call; a pickle of another one comes back unfused
Global = tuple[str, str | None, Any]  # name, module, and its attribute (None: the module itself)


class Variant(NamedTuple):
    """A forward, and when it stands for the one that was written."""

    text: str  # def forward(self, ...): ...
    names: tuple[Global, ...]  # what the text needs
    conditions: tuple[Condition, ...]
    inputs: tuple[str, ...]


class Spec(NamedTuple):
    variants: tuple[Variant, ...]
    version: int = VERSION


_classes: dict[type, list[tuple[Spec, type]]] = {}


def fused_class(kind: type, spec: Spec) -> type:
    """The class of modules of `kind` that are fused by `spec`: the same one for the same spec."""
    made = _classes.setdefault(kind, [])
    for known, found in made:
        if known == spec:
            return found
    new = _make(kind, spec, f"<fused {kind.__qualname__} {len(made)}>")
    made.append((spec, new))
    return new


def is_fused(module: nn.Module) -> bool:
    return "plain_class" in vars(type(module))


def encode(name: str, value: Any) -> Global:
    """A name that generated code needs, so that pickle can carry it."""
    if inspect.ismodule(value):
        return name, value.__name__, None
    home, path = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if home and path and _resolve(home, path) is value:
        return name, home, path
    return name, None, value


def _resolve(home: str, path: str) -> Any:
    try:
        value: Any = importlib.import_module(home)
        for part in path.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError):
        return None
    return value


def _decode(name: Global) -> Any:
    _, home, what = name
    if home is None:
        return what
    return importlib.import_module(home) if what is None else _resolve(home, what)


def _make(kind: Any, spec: Spec, file: str) -> type:
    runs = [_compiled(variant, f"{file[:-1]}.{i}>") for i, variant in enumerate(spec.variants)]
    forward = _forward(kind, spec.variants, runs, file)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        function, args, *rest = kind.__reduce_ex__(self, protocol)
        if type(self) is new and args and args[0] is new:
            function, args = rebuild, (kind, spec, function, args[1:])
        return (function, args, *rest)

    namespace = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__reduce_ex__": reduce,
        "forward": forward,
        "plain_class": kind,
        "spec": spec,
    }
    new: type = type(kind)(kind.__name__, (kind,), namespace)
    return new


def rebuild(kind: type, spec: Spec, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What pickle makes before it sets the state; `function` is copyreg's, which takes a class."""
    return function(fused_class(kind, spec) if spec.version == VERSION else kind, *args)


def _compiled(variant: Variant, file: str) -> Callable[..., Any]:
    scope = {name[0]: _decode(name) for name in variant.names}
    return _function(variant.text, scope, file)


def _function(text: str, scope: dict[str, Any], file: str) -> Any:
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    exec(compile(text, file, "exec"), scope)
    return scope["forward"]


def _forward(
    kind: type, variants: tuple[Variant, ...], runs: list[Callable[..., Any]], file: str
) -> Any:
    """The forward with the signature of the one that was written, which it falls back on."""
    written = kind.forward  # type: ignore[attr-defined]
    scope: dict[str, Any] = {
        "written": written,
        "is_tensor": is_tensor,
        "others_look_on": others_look_on,
        "is_as_written": is_as_written,
    }
    signature = inspect.signature(written)
    head, passed, given = _arguments(signature, variants[0].inputs, scope)
    lines = [f"def forward({head}):", f"    if {given}:"]
    for index, (variant, run) in enumerate(zip(variants, runs, strict=True)):
        scope[f"run_{index}"] = run
        scope[f"holds_{index}"] = _holding(variant.conditions, f"{file[:-1]}.holds.{index}>")
        inputs = ", ".join(variant.inputs)
        lines += [
            f"        if holds_{index}(self):",
            f"            return run_{index}(self, {inputs})",
        ]
    lines.append(f"    return written({passed})")
    return _function("\n".join(lines) + "\n", scope, file)


def _arguments(
    signature: inspect.Signature, inputs: tuple[str, ...], scope: dict[str, Any]
) -> tuple[str, str, str]:
    """(parameters, arguments that hand them on, when the recorded forward takes them)."""
    head, passed = [], []
    given = ["not others_look_on()", *(f"is_tensor({name})" for name in inputs)]
    _, *others = signature.parameters.values()
    head.append("self")
    passed.append("self")
    keyword = False
    for p in others:
        if p.kind == p.VAR_POSITIONAL:
            head.append(f"*{p.name}")
            passed.append(f"*{p.name}")
            given.append(f"not {p.name}")
            keyword = True
        elif p.kind == p.VAR_KEYWORD:
            head.append(f"**{p.name}")
            passed.append(f"**{p.name}")
            given.append(f"not {p.name}")
        else:
            if p.kind == p.KEYWORD_ONLY and not keyword:
                head.append("*")
                keyword = True
            if p.default is p.empty:
                head.append(p.name)
            else:
                scope[f"default_{p.name}"] = p.default
                head.append(f"{p.name}=default_{p.name}")
                given.append(f"{p.name} is default_{p.name}")
            passed.append(f"{p.name}={p.name}" if p.kind == p.KEYWORD_ONLY else p.name)
    return ", ".join(head), ", ".join(passed), " and ".join(given)


def _holding(conditions: tuple[Condition, ...], file: str) -> Any:
    """A function of the module that says whether all conditions hold, as straight code."""
    scope: dict[str, Any] = {"is_as_written": is_as_written, "missing": MISSING}
    lines = ["def forward(self):"]
    known = {"": "self"}
    for number, (path, kind, keys, reads) in enumerate(conditions):
        lines += _walk(path, known)
        here = known[path]
        scope[f"kind_{number}"] = kind
        if path and kind is not None:  # hooks on the module itself run around its forward
            lines.append(f"    if not is_as_written({here}, kind_{number}): return False")
        if keys is not None:
            lines.append(f"    if tuple({here}._modules) != {keys!r}: return False")
        for index, (name, how, value) in enumerate(reads):
            constant = f"value_{number}_{index}"
            scope[constant] = value
            read = f"getattr({here}, {name!r}, {here})"
            if how == "==":
                lines.append(f"    if {read} != {constant}: return False")
            elif how == "is":
                lines.append(f"    if {read} is not {constant}: return False")
            elif how == "is not True":
                lines.append(f"    if {read} is True: return False")
            elif how == "same":
                lines += _walk(value, known)
                lines.append(f"    if {here} is not {known[value]}: return False")
            elif how == "missing":
                lines.append(f"    if hasattr({here}, {name!r}): return False")
            elif how == "not its own":
                lines.append(f"    if {name!r} in {here}.__dict__: return False")
            elif how == "global":
                first, *rest = name.split(".")
                scope[constant], scope[f"{constant}_in"] = value[1], _scope_of(value[0])
                read = f"{constant}_in.get({first!r}, missing)"
                for part in rest:
                    read = f"getattr({read}, {part!r}, missing)"
                lines.append(f"    if {read} != {constant}: return False")
            else:
                wrong = "is not None" if value else "is None"
                lines.append(f"    if {here}.{how}.get({name!r}) {wrong}: return False")
    lines.append("    return True")
    return _function("\n".join(lines) + "\n", scope, file)


def _scope_of(home: str) -> dict[str, Any]:
    """The variables of a module of Python, as they are whenever they are looked up."""
    try:
        return vars(importlib.import_module(home))
    except ImportError:
        return {}


def _walk(path: str, known: dict[str, str]) -> list[str]:
    """Lines that give the module at `path`, and those on the way, a name each."""
    lines = []
    parts = path.split(".") if path else []
    for end in range(1, len(parts) + 1):
        here, above = ".".join(parts[:end]), ".".join(parts[: end - 1])
        if here not in known:
            known[here] = f"module_{len(known)}"
            lines.append(f"    {known[here]} = {known[above]}._modules.get({parts[end - 1]!r})")
            lines.append(f"    if {known[here]} is None: return False")
    return lines
