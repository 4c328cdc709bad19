"""Records what a forward does: a graph, and what must still be so whenever the graph stands for it.

A graph is recorded of one module, through all that it calls but layers of torch.nn, sparse layers
and modules that cannot be traced. Everything that the code reads of modules and of globals while it
is recorded (numbers, flags such as `training`, which children are None) becomes a condition. A call
for which one of them does not hold runs the forward as it was written.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dsr_kernels.fusing import reading
from dsr_kernels.fusing.conditions import (
    BASICS,
    Condition,
    NotTraceable,
    asking_types,
    conditions_on,
    keys_are_read,
    recording,
    unchanged,
)
from dsr_kernels.fusing.plain import plain_class
from dsr_kernels.fusing.watching import Watch
from dsr_kernels.nn.module import SparseModule

HANDED_ON = (fx.Proxy, fx.Node, *BASICS, torch.memory_format, torch.layout)
CONTAINERS = (
    *(tuple, list, dict, slice, range, torch.Size),
    *(fx.immutable_collections.immutable_list, fx.immutable_collections.immutable_dict),
)
KEYED = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # code that walks them reads their keys


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
    all_in = dict(module.named_modules(remove_duplicate=False))
    reads: dict[nn.Module, set[str]] = {each: set() for each in all_in.values()}
    watch = Watch()
    with (
        unchanged(reads),
        recording(reads, through.values()),
        asking_types(through.values(), reads),
        _NothingComputed(),
        _switches_put_back(),
    ):
        try:
            with watch:
                graph = tracer.trace(module)
        except NotTraceable:
            raise
        except Exception as error:  # whatever the code does with a proxy
            text = str(error).strip().split("\n")[0]
            raise NotTraceable(f"cannot be recorded: {type(error).__name__}: {text}") from None
    for node in graph.nodes:
        if node.op == "output":
            node.type = None
    known = set(through.values())
    conditions = [
        Condition(path, plain_class(type(each)), _keys(each), conditions_on(each, reads[each]))
        for path, each in through.items()
        if each in tracer.passed or reads[each]
    ]
    for path, each in all_in.items():  # more paths of them, and layers that the code looked at
        if each in known and not keys_are_read(reads[each]):
            continue
        if reads[each]:
            conditions.append(_looked_at(path, each, reads[each]))
    more = _shared(all_in, graph, tracer.passed | {m for m in reads if reads[m]})
    more += watch.conditions() + _not_in_place(graph, module)
    return Trace(graph, (*conditions, *more), tracer.inputs)


def _looked_at(path: str, module: nn.Module, names: set[str]) -> Condition:
    kind = plain_class(type(module)) if "isinstance()" in names else None
    keys = tuple(module._modules) if keys_are_read(names) else None
    return Condition(path, kind, keys, conditions_on(module, names))


def _shared(
    modules: dict[str, nn.Module], graph: fx.Graph, used: set[nn.Module]
) -> tuple[Condition, ...]:
    """That modules which are the same one by several names stay so: a graph has but one name."""
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    first: dict[nn.Module, str] = {}
    found = []
    for path, each in modules.items():
        name = first.setdefault(each, path)
        if name != path and (each in used or name in called):
            found.append(Condition(path, None, None, ((path, "same", name),)))
    return tuple(found)


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


class _Proxy(fx.Proxy):
    """A recorded value. torch's own takes `x += y` for `x = x + y`, which writes to nothing."""


def _in_place(name: str) -> Any:
    function = getattr(operator, name)

    def record(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("and", "or", "xor", "lshift", "rshift"),
):
    setattr(_Proxy, f"__i{_name}__", _in_place(f"i{_name}"))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, opaque: set[nn.Module]) -> None:
        super().__init__()
        self.opaque = opaque
        self.inputs: tuple[str, ...] = ()
        self.passed: set[nn.Module] = set()
        self.state = _state()

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        if _state() != self.state:
            raise NotTraceable("switches gradients or autocast")
        return super().create_proxy(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

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
        elif not _handed_on(a):
            raise NotTraceable(f"hands on an object of type {type(a).__name__}")
        return super().create_arg(a)


def _handed_on(value: Any) -> bool:
    """Whether the graph gives what the code gives: not so of subclasses of containers."""
    if isinstance(value, HANDED_ON) or value is ...:
        return True
    return type(value) in CONTAINERS or (isinstance(value, tuple) and hasattr(value, "_fields"))


def _state() -> tuple[bool, bool, list[tuple[str, bool, torch.dtype]]]:
    """What a with statement or a function may switch."""
    autocast = [
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in ("cpu", "cuda")
    ]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast


@contextlib.contextmanager
def _switches_put_back() -> Iterator[None]:
    gradients, _, autocast = _state()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        for kind, enabled, dtype in autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)


class _NothingComputed(TorchDispatchMode):
    """While code is recorded, no tensor is computed: its numbers would stay what they are now."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        raise NotTraceable(f"computes {func.overloadpacket.__name__} without its input")


def _keys(module: nn.Module) -> tuple[str, ...] | None:
    return tuple(module._modules) if isinstance(module, KEYED) else None
