"""Records what a forward does: a graph, and what must still be so whenever the graph stands for it.

A graph is recorded of one module, through all that it calls but layers of torch.nn, sparse layers
and modules that cannot be traced. Everything that the code reads of those modules while it is
recorded (numbers, flags such as `training`, which children are None) becomes a condition. A call
for which one of them does not hold runs the forward as it was written.
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dsr_kernels.fusing import reading
from dsr_kernels.fusing.plain import plain_class
from dsr_kernels.nn.module import SparseModule

BASICS = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device)
HANDED_ON = (
    *(fx.Proxy, fx.Node, *BASICS, tuple, list, dict, slice, range),
    *(torch.memory_format, torch.layout),
)
HELD_IN = ("_modules", "_parameters", "_buffers")
KEYED = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # code that walks them reads their keys
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


class Trace(NamedTuple):
    graph: fx.Graph
    conditions: tuple[Condition, ...]
    inputs: tuple[str, ...]  # names of the tensors that it takes

    def depends_on_mode(self) -> bool:
        return any(name == "training" for c in self.conditions for name, _, _ in c.reads)


def is_layer(module: nn.Module) -> bool:
    """Whether a trace stops at the module: a layer of torch.nn, a sparse one, or compiled code."""
    kind = plain_class(type(module))
    if isinstance(module, (SparseModule, torch.jit.ScriptModule)):
        return True
    written = next(each for each in kind.__mro__ if not made_by_torch(each))
    return written.__module__.startswith("torch.") and not issubclass(kind, KEYED)


def made_by_torch(kind: type) -> bool:
    """Whether torch made the class, for one module: a parametrized or a fully sharded one."""
    return kind.__module__.startswith(("torch.nn.utils.parametrize", "torch.distributed.fsdp"))


def has_forward(module: nn.Module) -> bool:
    """Whether it can be called: nn.ModuleList and nn.ModuleDict cannot, but their subclasses."""
    return getattr(type(module), "forward", None) is not nn.Module.forward


def trace(module: nn.Module, opaque: set[nn.Module]) -> Trace:
    """The record of the forward of `module`; `opaque` are the modules not to be traced through.

    Raises NotTraceable.
    """
    through = modules_through(module, opaque)
    for each in through.values():
        if has_forward(each) and (reason := reading.why_not(each)):
            raise NotTraceable(reason)
    tracer = _Tracer(opaque)
    reads: dict[nn.Module, set[str]] = {each: set() for each in through.values()}
    before = {each: _plain_values(each) for each in reads}
    with _recording(reads), _asking_types(through.values()), _NothingComputed():
        try:
            graph = tracer.trace(module)
        except NotTraceable:
            raise
        except Exception as error:  # whatever the code does with a proxy
            text = str(error).strip().split("\n")[0]
            raise NotTraceable(f"cannot be recorded: {type(error).__name__}: {text}") from None
    for each, values in before.items():
        if _plain_values(each) != values:
            raise NotTraceable("changes attributes")
    for node in graph.nodes:
        if node.op == "output":
            node.type = None
    conditions = tuple(
        Condition(path, plain_class(type(each)), _keys(each), _conditions_on(each, reads[each]))
        for path, each in through.items()
        if each in tracer.passed or reads[each]
    )
    return Trace(graph, conditions + _not_in_place(graph, module), tracer.inputs)


def _not_in_place(graph: fx.Graph, module: nn.Module) -> tuple[Condition, ...]:
    """That layers which leave their input as it is go on doing so."""
    names = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module")
    kept = [n for n in names if getattr(module.get_submodule(n), "inplace", None) is False]
    return tuple(Condition(name, None, None, (("inplace", "is not True", None),)) for name in kept)


def modules_through(module: nn.Module, opaque: set[nn.Module]) -> dict[str, nn.Module]:
    """The module and those in it that a trace goes through, by path."""
    found = {"": module}
    todo = [("", module)]
    while todo:
        path, each = todo.pop()
        for name, child in each._modules.items():
            if child is None or child in opaque or is_layer(child):
                continue
            below = f"{path}.{name}" if path else name
            if child not in found.values():
                found[below] = child
                todo.append((below, child))
    return found


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, opaque: set[nn.Module]) -> None:
        super().__init__()
        self.opaque = opaque
        self.inputs: tuple[str, ...] = ()
        self.passed: set[nn.Module] = set()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.opaque or is_layer(m)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if not self.is_leaf_module(m, ""):
            self.passed.add(m)
        return super().call_module(m, forward, args, kwargs)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Proxies for the arguments without a default; the others have their default."""
        assert isinstance(self.root, nn.Module)
        self.passed.add(self.root)
        _, *parameters = inspect.signature(root_fn).parameters.values()
        required = [p for p in parameters if p.default is p.empty and p.kind not in (2, 4)]
        if not required or any(p.kind not in (0, 1) for p in required):
            raise NotTraceable("takes no input by a position of its own")
        self.inputs = tuple(p.name for p in required)
        inputs = [self.create_proxy("placeholder", name, (), {}) for name in self.inputs]
        return root_fn, [self.root, *inputs]

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor):
            held = (*self.root.parameters(), *self.root.buffers())
            if not any(a is each for each in held):
                raise NotTraceable("uses a tensor that is neither a parameter nor a buffer")
        elif not isinstance(a, HANDED_ON) and a is not ...:
            raise NotTraceable(f"hands on an object of type {type(a).__name__}")
        return super().create_arg(a)


class _NothingComputed(TorchDispatchMode):
    """While code is recorded, no tensor is computed: its numbers would stay what they are now."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        raise NotTraceable(f"computes {func.overloadpacket.__name__} without its input")


# --- what the code reads --------------------------------------------------------------------------


@contextlib.contextmanager
def _recording(reads: dict[nn.Module, set[str]]) -> Iterator[None]:
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
def _asking_types(modules: Iterator[nn.Module] | Any) -> Iterator[None]:
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


def _keys(module: nn.Module) -> tuple[str, ...] | None:
    return tuple(module._modules) if isinstance(module, KEYED) else None


def _plain_values(module: nn.Module) -> dict[str, Any]:
    """Copies of the attributes that are numbers, flags, texts and containers of those."""
    return {
        name: _copied(value)
        for name, value in module.__dict__.items()
        if not name.startswith("_") and is_plain(value)
    }


def is_plain(value: Any) -> bool:
    if isinstance(value, BASICS):
        return True
    if type(value) in (list, tuple, set, frozenset):
        return all(map(is_plain, value))
    return type(value) is dict and all(is_plain(each) for pair in value.items() for each in pair)


def _copied(value: Any) -> Any:
    if type(value) is dict:
        return {key: _copied(each) for key, each in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(_copied, value))
    return value


def _conditions_on(module: nn.Module, names: set[str]) -> tuple[tuple[str, str, Any], ...]:
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
    if not is_plain(value):
        raise NotTraceable(f"reads {name}, a {type(value).__name__}")
    return _copied(value)
