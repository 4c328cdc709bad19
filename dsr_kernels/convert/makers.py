"""Which layers make a model's output: those behind which no other layer comes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from dsr_kernels import probe
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.nn.twins import WITHOUT_TWIN

# Operations that take no more than the shape and type of an argument, and those that write to it.
FRESH = re.compile(r"new_|.+_like$")
WRITES = re.compile(r"__setitem__$|.*[^_]_$|__i[a-z]+__$")


@dataclass
class Makers:
    """What forward passes have shown: the makers of each tensor of the output, and by layer that
    ran, all layers before it.
    """

    outputs: list[set[nn.Module]] = field(default_factory=list)
    before: dict[nn.Module, set[nn.Module]] = field(default_factory=dict)  # of those that ran

    @property
    def known(self) -> bool:
        """Whether any layer was seen behind the output."""
        return any(self.outputs)

    def are_a_body(self, of_one: set[nn.Module]) -> bool:
        """Whether the makers of one tensor follow each other, as those of a residual stream do."""
        return any(of_one & self.before.get(maker, set()) for maker in of_one)


def find_makers(model: nn.Module, layers: Iterable[nn.Module], inputs: probe.Inputs) -> Makers:
    """The makers of the outputs of `model` in both modes.

    `layers` and those that have no sparse twin or are sparse are makers of what they give; any
    other operation hands on the makers of all its arguments. None are known of a model that does
    not run.
    """
    found = Makers()
    others = (m for m in model.modules() if isinstance(m, (SparseModule, *WITHOUT_TWIN)))
    known = {*layers, *others}

    @contextlib.contextmanager
    def noting() -> Iterator[None]:
        with _HandOn() as tracked, contextlib.ExitStack() as stack:

            def made(layer: nn.Module, args: Any, named: Any, output: Any) -> None:
                before = found.before.setdefault(layer, set())
                for maker in tracked.of((args, named)):
                    before |= {maker} | found.before.get(maker, set())
                for tensor in _tensors(output):
                    tracked.makers[tensor] = {layer}

            def returned(model: nn.Module, args: Any, output: Any) -> None:
                found.outputs += [tracked.makers.get(t, set()) for t in _tensors(output)]

            handles = [layer.register_forward_hook(made, with_kwargs=True) for layer in known]
            for handle in (*handles, model.register_forward_hook(returned)):
                stack.callback(handle.remove)
            yield

    with contextlib.suppress(ValueError):
        probe.run_in_both_modes(model, inputs, noting)
    return found


class _HandOn(TorchFunctionMode):
    """Every result has the makers of all arguments, and so has what is written to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.makers: Any = WeakTensorKeyDictionary()  # Tensor -> set of modules

    def of(self, value: Any) -> set[nn.Module]:
        """The makers of all tensors in a value."""
        return set().union(*(self.makers.get(tensor, ()) for tensor in _tensors(value)))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        makers = set() if FRESH.match(name) else self.of((args, kwargs))
        if makers:
            for tensor in (*_tensors(result), *(_written(args) if WRITES.match(name) else ())):
                self.makers[tensor] = makers
        return result


def _written(args: tuple[Any, ...]) -> list[Tensor]:
    """The first argument, and the tensor that it is a view of."""
    tensors = _tensors(args[:1])
    return [*tensors, *(t._base for t in tensors if t._base is not None)]


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in a value of any structure that torch knows, or in the fields of an object."""
    found = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dataclass_fields__"):
            found += [t for t in tree_leaves(vars(leaf)) if isinstance(t, Tensor)]
    return found
