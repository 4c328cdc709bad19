"""Optimizer steps within torch.compile, once a rewire has changed what the optimizer holds.

Dynamo compiles the identities of an optimizer's parameters and state into the code, and with them
their lengths; it looks at the identities alone before it runs that code again. A rewire gives a
parameter another length and state other tensors. So each rewire would be a compilation of its own,
or, of an optimizer without state, code for another length. From the first rewire on such a step
runs eagerly, and only that of optimizers with rewired layers.
"""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Mapping

from torch.optim.optimizer import Optimizer

# How often each sparse layer of an optimizer was given a weight, at its first compiled step; None
# once that has changed.
_given: weakref.WeakKeyDictionary[Optimizer, Mapping[int, int] | None] = weakref.WeakKeyDictionary()
_skipped: set[types.CodeType] = set()


def choose_how_to_run(optimizer: Optimizer, given: Mapping[int, int]) -> None:
    """Before a step within torch.compile: has it run compiled or eagerly.

    given: how often each sparse layer that it steps has been given a weight so far, by id.
    """
    if _given.setdefault(optimizer, given) != given:
        _given[optimizer] = None
    code = getattr(inspect.unwrap(type(optimizer).step), "__code__", None)
    eagerly = _given[optimizer] is None
    # One code for all optimizers of a class: each of them comes here before its step.
    if code is None:
        return
    if eagerly:  # each time, for torch._dynamo.reset() forgets it
        _skipped.add(code)
        _set(code, eagerly)
    elif code in _skipped:  # else it is as Dynamo has chosen
        _skipped.discard(code)
        _set(code, eagerly)


def _set(code: types.CodeType, eagerly: bool) -> None:
    try:
        from torch._dynamo.eval_frame import set_code_exec_strategy
        from torch._dynamo.types import FrameAction, FrameExecStrategy
    except ImportError:  # of a torch that lacks them: the step runs as Dynamo chooses
        return
    action = FrameAction.SKIP if eagerly else FrameAction.DEFAULT
    set_code_exec_strategy(code, FrameExecStrategy(action, action))
