"""The number that an optimizer's state starts at: where the state of a grown weight starts.

It is 0 with most. Rprop's step sizes start at the learning rate, Adagrad's sums where its caller
says, the mean squares of some RMSprops at 1.
"""

from __future__ import annotations

import inspect
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer
from torch.utils._python_dispatch import TorchDispatchMode

Fresh = dict[str, float]  # by the key of the state; a key that is missing starts at 0

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

# What was found out of optimizers: (hyperparameters, what their state starts at).
_known: WeakKeyDictionary[Any, list[tuple[dict[str, Any], Fresh]]] = WeakKeyDictionary()


def fresh_values(optimizer: Any, group: Mapping[str, Any], parameter: nn.Parameter) -> Fresh:
    """What the state of `parameter`, which is of `group`, starts at under these hyperparameters.

    Of torch's own optimizers this is known. Another class is tried out, on a parameter of two
    weights of 0 and a gradient of 0: the first number it gives to each key counts. Where its
    constructor wants more than the group and the optimizer's attributes have, or the state depends
    on more, it is 0.
    """
    kind = type(optimizer)
    if kind.__module__.startswith("torch."):
        return _of_torch(optimizer, group)
    arguments = _arguments(optimizer, group)
    known = _known.setdefault(optimizer, [])
    for found_with, fresh in known:
        # What is 0 is so under any learning rate.
        if found_with.keys() == arguments.keys() and (
            not fresh or all(_same(found_with[key], arguments[key]) for key in arguments)
        ):
            return fresh
    noted, group_of_probe = _try_out(kind, arguments, parameter)
    inherited = _of_torch(optimizer, group)
    if all(_same(value, group.get(key)) for key, value in group_of_probe.items()):
        inherited = {key: inherited[key] for key in inherited.keys() - noted.seen}
    fresh = noted.fresh | inherited  # what is known counts, unless the probe knew as much
    known[:] = [*known[-7:], (arguments, fresh)]
    return fresh


def _of_torch(optimizer: Any, group: Mapping[str, Any]) -> Fresh:
    """By the sources of torch.optim, where everything else starts at 0."""
    if isinstance(optimizer, torch.optim.Rprop):
        return {"step_size": float(group["lr"])}
    if isinstance(optimizer, torch.optim.Adagrad):
        return {"sum": float(optimizer.defaults["initial_accumulator_value"])}
    return {}


def _arguments(optimizer: Any, group: Mapping[str, Any]) -> dict[str, Any]:
    """What the constructor takes by name, from the group or else from the optimizer's attributes.
    Where it takes any name, those count that its base classes take.
    """
    names: list[str] = []
    for kind in type(optimizer).__mro__:
        made_by = vars(kind).get("__init__")
        if made_by is None:
            continue
        try:
            parameters = inspect.signature(made_by).parameters.values()
        except (TypeError, ValueError):
            return {}
        names += [p.name for p in list(parameters)[2:] if p.kind not in VARIADIC]
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    own = {k: v for k, v in vars(optimizer).items() if isinstance(v, int | float | str | tuple)}
    known = {name: {**own, **group}[name] for name in names if name in group or name in own}
    known.pop("params", None)
    return {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in known.items()}


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def _try_out(
    kind: type, arguments: Mapping[str, Any], parameter: nn.Parameter
) -> tuple[_Noted, dict[str, Any]]:
    """What its state was first set to, and the hyperparameters that it had then."""
    probe = nn.Parameter(torch.zeros(2, 1, dtype=parameter.dtype, device=parameter.device))
    probe.grad = torch.zeros_like(probe)
    noted, group = _Noted(), {}

    def closure() -> Tensor:
        probe.grad = torch.zeros_like(probe)
        return torch.zeros((), device=parameter.device)

    devices = [parameter.device] if parameter.device.type == "cuda" else []
    quiet = warnings.catch_warnings()
    with torch.random.fork_rng(devices), quiet, _no_global_hooks(), _NothingEmpty():
        warnings.simplefilter("ignore")
        try:
            optimizer = kind([probe], **arguments)
            group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
            for key, value in optimizer.state.get(probe, {}).items():  # Adagrad's start here
                noted[key] = value
            optimizer.state = defaultdict(_Noted, {probe: noted})
            step = inspect.unwrap(type(optimizer).step)
            step(optimizer, *([closure] if _wants_closure(step) else []))
        except Exception:  # a class of somebody else may want anything: what it noted so far counts
            pass
    return noted, group


def _wants_closure(step: Any) -> bool:
    """Whether it cannot be called without."""
    wanted = list(inspect.signature(step).parameters.values())[1:2]
    return any(p.default is p.empty and p.kind not in VARIADIC for p in wanted)


@contextmanager
def _no_global_hooks() -> Iterator[None]:
    """Nobody's hooks need to know of the step that is tried out."""
    names = "_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"
    tables = [getattr(torch_optimizer, name) for name in names]
    held = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, held, strict=True):
            table.update(hooks)


class _Noted(dict):
    """The state of one parameter. It notes what each key is first set to."""

    def __init__(self) -> None:
        super().__init__()
        self.fresh: Fresh = {}
        self.seen: set[Any] = set()

    def __setitem__(self, key: Any, value: Any) -> None:
        if key not in self.seen:
            self.seen.add(key)
            if isinstance(value, Tensor) and value.shape in ((2, 1), (2,)):
                first = value.flatten()[0].item()
                if first and bool((value == first).all()):
                    self.fresh[key] = first
        super().__setitem__(key, value)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *others: Any, **more: Any) -> None:
        for key, value in dict(*others, **more).items():
            self[key] = value

    def __ior__(self, other: Any) -> _Noted:  # type: ignore[misc]
        self.update(other)
        return self


class _NothingEmpty(TorchDispatchMode):
    """Memory that nobody has written yet holds NaN, so that it is no fresh value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if "empty" in func.__name__ and isinstance(made, Tensor) and made.is_floating_point():
            made.fill_(float("nan"))
        return made
