"""Where optimizers keep what they remember, also those around other optimizers.

SAM, Lookahead, schedule-free wrappers, accelerate's and ZeroRedundancyOptimizer step other
optimizers, which hold the state. So everything reached from the given optimizer is looked at.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

CONTAINERS = (list, tuple, set, frozenset, deque)
# Attributes of an optimizer that `tables` and `Optimizer` itself care for.
OWN = ("state", "param_groups", "defaults")
# ZeroRedundancyOptimizer's: the states of all processes, gathered to be saved. Nothing reads them.
COPIES = ("_all_state_dicts",)


class Table(NamedTuple):
    """A dict from parameters to what an optimizer remembers of each: a tensor, or a dict of them.

    Others than the parameters of `owner` may be keys, too.
    """

    owner: Any
    name: str  # of the attribute
    content: MutableMapping[Any, Any]


def nested_optimizers(*given: Any) -> list[Any]:
    """`given` and every optimizer reached from there, each once, the outer ones first.

    An optimizer is a torch.optim.Optimizer or, as schedule-free's wrapper, another object with
    param_groups and a step. They are found in attributes, also in lists, tuples, dicts and sets, in
    the attributes of plain objects there, and behind their bound methods.
    """
    found: dict[int, Any] = {}
    waiting = deque(given)
    while waiting:
        optimizer = waiting.popleft()
        if id(optimizer) in found:
            continue
        found[id(optimizer)] = optimizer
        for name, value in _attributes(optimizer):
            if name not in OWN and not name.endswith("_hooks"):
                leaves = list(_leaves(value, set()))
                waiting += [one for leaf in leaves for one in _behind(leaf) if is_optimizer(one)]
    return list(found.values())


def _behind(value: Any) -> Iterator[Any]:
    """It, whose method it is, and what it has in its attributes."""
    yield value
    if isinstance(value, partial):
        yield from _behind(value.func)
    elif isinstance(value, MethodType):
        yield value.__self__
    elif not isinstance(value, type | Tensor | nn.Module | ModuleType | FunctionType):
        for _, held in _attributes(value):
            yield from _leaves(held, set())


def is_optimizer(value: Any) -> bool:
    """Whether it is an optimizer or behaves as one."""
    if isinstance(value, Optimizer):
        return True
    if isinstance(value, type | Tensor | nn.Module):
        return False
    return isinstance(getattr(value, "param_groups", None), list) and hasattr(value, "step")


def tables(optimizers: list[Any]) -> list[Table]:
    """Where these optimizers remember something of parameters; a dict they share comes once."""
    found: dict[int, Table] = {}
    for optimizer in reversed(optimizers):  # whose state a wrapper shows as its own is the inner's
        state = getattr(optimizer, "state", None)
        candidates = [("state", state), *_attributes(optimizer)]
        for name, value in candidates:
            if not isinstance(value, MutableMapping) or name in ("param_groups", "defaults"):
                continue
            if name == "state" or any(isinstance(key, nn.Parameter) for key in value):
                found.setdefault(id(value), Table(optimizer, name, value))
    return list(found.values())


def hidden_tensors(optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    """(attribute, tensor) of all that the optimizer holds and that no parameter is the key of."""
    for name, value in [("state", getattr(optimizer, "state", None)), *_attributes(optimizer)]:
        if name == "defaults" or (name == "state" and not isinstance(value, Mapping)):
            continue
        if isinstance(value, Mapping):
            value = [held for key, held in value.items() if not isinstance(key, nn.Parameter)]
        elif name == "param_groups":
            value = [
                [held for key, held in group.items() if key != "params"]
                for group in optimizer.param_groups
            ]
        for leaf in _leaves(value, set()):
            if isinstance(leaf, Tensor):
                yield name, leaf


def state_tensors(optimizer: Any) -> Iterator[tuple[Any, Any, Tensor]]:
    """(parameter, key, tensor) of all in its state, also in lists."""
    state = getattr(optimizer, "state", None)
    for parameter, held in list(state.items()) if isinstance(state, Mapping) else ():
        for key, value in held.items() if isinstance(held, Mapping) else ():
            for leaf in _leaves(value, set()):
                if isinstance(leaf, Tensor):
                    yield parameter, key, leaf


def held_parameters(optimizers: list[Any]) -> dict[int, tuple[Any, dict[str, Any]]]:
    """Parameter's id -> the optimizer that holds it, the innermost one, and its group there."""
    return {
        id(parameter): (optimizer, group)
        for optimizer in optimizers
        for group in getattr(optimizer, "param_groups", ())
        for parameter in group["params"]
    }


def weakly(value: Any) -> Callable[[], Any]:
    """A reference that does not keep it alive, where it has such."""
    try:
        return weakref.ref(value)
    except TypeError:  # it has slots
        return lambda: value


def own_state(optimizer: Any) -> Any:
    """Its own: a wrapper may show another's, or make one up at each access."""
    return getattr(optimizer, "__dict__", {}).get("state")


def was_loaded(optimizer: Any) -> bool:
    """Whether it once loaded a state, as far as can be told from outside: `state_dict` packs a
    group's parameters last, and the groups that are loaded stay in this order.
    """
    groups = getattr(optimizer, "param_groups", ())
    return bool(own_state(optimizer)) and any(list(group)[-1] == "params" for group in groups)


def _attributes(optimizer: Any) -> list[tuple[str, Any]]:
    held = getattr(optimizer, "__dict__", {})
    return [(name, value) for name, value in held.items() if name not in COPIES]


def _leaves(value: Any, seen: set[int]) -> Iterator[Any]:
    """What is held by nested containers; by itself, where it is none."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, CONTAINERS):
        yield value
    elif id(value) not in seen:
        seen.add(id(value))
        for held in tuple(value):
            yield from _leaves(held, seen)
