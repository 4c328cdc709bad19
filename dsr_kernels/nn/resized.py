"""Weights whose number of non-zeros was changed beside the optimizers that know them.

A fused optimizer writes as far as a parameter's size, whatever the size of its state. Where a
checkpoint, `replace_topology` or a rewire gives a layer another number of non-zeros, state of the
old size that no rewirer moves is refused before the next step. Each optimizer is looked at once
after a change of sizes, and none where nothing was resized.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook


@dataclass
class _Resized:
    parameter: weakref.ref[nn.Parameter]
    name: str
    sizes: set[int]  # that it had


_resized: dict[int, _Resized] = {}  # by the id of the parameter
# How often something was resized when an optimizer was last looked at, and until now.
_looked_at: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
_count = 0
_hook: Any = None  # torch's handle, once there is a need


def resized(parameter: nn.Parameter, size: int, name: str) -> None:
    """Notes that `parameter` had `size` entries and gets another number; `name`: of its layer."""
    global _count, _hook
    key = id(parameter)
    if key not in _resized:
        dies = weakref.ref(parameter, lambda _: _resized.pop(key, None))
        _resized[key] = _Resized(dies, name, set())
    _resized[key].name = name
    _resized[key].sizes.add(size)
    _count += 1
    if _hook is None:
        _hook = register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Raises RuntimeError for state of a size that its parameter no longer has."""
    if _looked_at.get(optimizer) == _count:
        return
    # A rewirer that moves the state of a parameter by itself says so.
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", {}).values()
    moved = {id(p) for hook in hooks for p in getattr(hook, "moved_parameters", list)()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            note = _resized.get(id(parameter))
            if note is not None and id(parameter) not in moved:
                _check(optimizer, parameter, note)
    _looked_at[optimizer] = _count


def _check(optimizer: Optimizer, parameter: nn.Parameter, note: _Resized) -> None:
    size = parameter.shape[0]
    old = {shape for n in note.sizes - {size} for shape in ((n,), (n, 1))}
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and tuple(value.shape) in old - {(1,)}:
            raise RuntimeError(
                f"optimizer: state {key!r} of {note.name} has shape {tuple(value.shape)}, "
                f"but its weight_values now have {tuple(parameter.shape)}: the layer was given "
                "another number of non-zeros; load the optimizer's state that belongs to them, "
                f"build a new {type(optimizer).__name__}, or let a rewirer of dsr_kernels.rewiring "
                "(Static, too) move the state"
            )
