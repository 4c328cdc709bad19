"""What model and optimizer keep on the host: a step within a capture must not change it.

A capture runs the Python of a step and computes nothing; replays run no Python. A count that the
host has, as a number or as a tensor of the CPU, would stand still, and a tensor that a step puts in
the place of another would be read where it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.cuda.look import numbers_of, place_of

_ABSENT = object()


class HostState:
    """What model and optimizer hold now; to be compared with what they hold later, and put back.

    device: of the parameters.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        self._optimizer, self._state = optimizer, dict(optimizer.state)
        states = [held for held in optimizer.state.values() if isinstance(held, dict)]
        modules = [
            m.__dict__[name] for m in model.modules() for name in ("_parameters", "_buffers")
        ]
        everything: list[dict[Any, Any]] = [*optimizer.param_groups, *states, *modules]
        self._tables = [(table, dict(table)) for table in everything]
        attributes = [(m.__dict__, numbers_of(m)) for m in model.modules()]
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = attributes
        self._data = [(p, place_of(p), p.data) for p in model.parameters()]
        self._numbers: list[tuple[Any, Tensor, Tensor]] = [
            (key, value, value.clone())
            for _, before in self._tables
            for key, value in before.items()
            if isinstance(value, Tensor) and value.device != device
        ]

    def changed(self) -> str | None:
        """The name of something that has changed since; None: nothing."""
        if set(self._optimizer.state) != set(self._state):
            return "state"
        for table, before in self._tables:
            for key in {**before, **table}:
                if _differs(table.get(key, _ABSENT), before.get(key, _ABSENT)):
                    return str(key)
        for table, before in self._attributes:
            for key, value in before.items():
                if _differs(table.get(key, _ABSENT), value):
                    return str(key)
        if any(place_of(p) != place for p, place, _ in self._data):
            return "data"
        changed = (key for key, now, before in self._numbers if not torch.equal(now, before))
        return next(map(str, changed), None)

    @torch.no_grad()
    def put_back(self) -> None:
        state: Any = self._optimizer.state
        for parameter in set(state) - set(self._state):
            del state[parameter]
        for table, before in self._tables:
            for key in set(table) - set(before):
                del table[key]
            table.update(before)
        for table, before in self._attributes:
            table.update(before)
        for parameter, place, data in self._data:
            if place_of(parameter) != place:
                parameter.data = data
        for _, now, before in self._numbers:
            now.copy_(before)


def _differs(now: Any, before: Any) -> bool:
    numbers = int, float, str, tuple
    if isinstance(now, numbers) and isinstance(before, numbers):
        return now != before and not (now != now and before != before)
    return now is not before
