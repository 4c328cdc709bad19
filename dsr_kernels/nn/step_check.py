"""Optimizers whose state does not belong to the values of a sparse layer: refused before the step.

A fused optimizer writes as far as a parameter's size, whatever the size of its state. And a layer
that loads another pattern has other weights under the same parameter. Nothing of the optimizer
shows either, so one hook runs before every step of every optimizer. It looks at an optimizer's
first two steps (state is made in the first), when its state is another dict than at the last look,
when some layer was given another number of non-zeros, and when a layer has loaded another pattern.
Otherwise it compares two identities and two numbers.

Where that is unsure, nothing is refused: optimizers may keep what they like under a parameter.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from dsr_kernels.nn.compiled_step import choose_how_to_run
from dsr_kernels.nn.pattern_owner import PatternOwner
from dsr_kernels.nn.sharing import living

# No reference to a parameter is kept: torch.utils.swap_tensors refuses those.
_looks: weakref.WeakKeyDictionary[Optimizer, _Look] = weakref.WeakKeyDictionary()
_resizes = 0  # so far


@dataclass(slots=True)
class _Look:
    """What was so of an optimizer when it was last looked at."""

    state: Any  # the dict itself; no other has its id then
    resizes: int
    again: bool  # at the next step
    sizes: dict[int, int] = field(default_factory=dict)  # of each sparse weight, by id
    # What its state belongs to, where a layer has loaded another pattern since.
    patterns: dict[int, Any] = field(default_factory=dict)


@functools.cache
def install() -> None:
    """From now on no optimizer steps a living layer with state that cannot be its own."""
    register_optimizer_step_pre_hook(_before_step)


def resized() -> None:
    """Some layer gets another number of non-zeros."""
    global _resizes
    _resizes += 1


def loaded(layer: PatternOwner, before: Any) -> None:
    """The layer has loaded what it holds now. `before`: the Pattern that it had, if any."""
    if before is None or before is layer._owned:
        return
    living = [one for reference in _looks.keyrefs() if (one := reference()) is not None]
    for look in map(_looks.__getitem__, living):
        for values in _values(layer):
            if isinstance(look.state, Mapping) and values in look.state:
                look.patterns.setdefault(id(values), before)
                look.again = True


def _values(layer: PatternOwner) -> list[nn.Parameter]:
    """The parameters with a number per non-zero: more than one where torch parametrizes them."""
    own = layer._parameters.get("weight_values")
    if own is not None:
        return [own]
    shape = layer.col_indices.numel(), layer.block_size
    return [p for p in layer.parameters() if p.shape == shape]


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Raises RuntimeError for state of a sparse layer's values that cannot be theirs."""
    if torch.compiler.is_compiling():  # a trace would take what is so now for always
        _eagerly(optimizer)
    else:
        _look_if_due(optimizer)


def _look_if_due(optimizer: Optimizer) -> None:
    last, state = _looks.get(optimizer), optimizer.__dict__.get("state")  # wrappers show another's
    if last is None or last.again or last.state is not state or last.resizes != _resizes:
        _looks[optimizer] = _look(optimizer, state, last)


def _before_compiled_step(optimizer: Optimizer) -> None:
    _look_if_due(optimizer)
    used = _used(optimizer)
    choose_how_to_run(optimizer, {id(values): layer.times_given for layer, values, _ in used})


_eagerly = torch._disable_dynamo(_before_compiled_step)


def _look(optimizer: Optimizer, state: Any, last: _Look | None) -> _Look:
    now = _Look(state, _resizes, again=last is None)
    last = last or now
    if not isinstance(state, Mapping):
        return now
    used = list(_used(optimizer))
    sizes = {id(values): values.shape[0] for _, values, _ in used}
    # A rewirer that moves the state of a parameter by itself says so.
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", {}).values()
    moved = {id(p) for hook in hooks for p in getattr(hook, "moved_parameters", list)()}
    for layer, values, group in used:
        held = state.get(values)
        if id(values) in moved or not isinstance(held, Mapping):
            continue
        whose = _Whose(optimizer, layer, values, bool(group.get("fused")))
        before = last.patterns.get(id(values)) if last.state is state else None
        whose.check(held, last.sizes.get(id(values)), sizes.values(), before)
    now.sizes = sizes
    return now


def _used(optimizer: Optimizer) -> Iterator[tuple[PatternOwner, nn.Parameter, dict[str, Any]]]:
    """The living sparse layers that the optimizer steps: (layer, its values, their group)."""
    owners = {id(values): layer for layer in list(living) for values in _values(layer)}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in owners:
                yield owners[id(parameter)], parameter, group


@dataclass(frozen=True, slots=True)
class _Whose:
    """One layer's values in one optimizer."""

    optimizer: Optimizer
    layer: PatternOwner
    values: nn.Parameter
    fused: bool

    def check(
        self, held: Mapping[Any, Any], last: int | None, sizes: Iterable[int], before: Any
    ) -> None:
        """Raises RuntimeError where something `held` of the values is not theirs.

        last: their number at the last look. sizes: those of all sparse layers of the optimizer.
        before: the Pattern that the state belongs to, where another one was loaded since.
        """
        own = tuple(self.values.shape)
        fitting = {own} if self.fused else {own, own[:1]}
        moved_away = before is not None and self._is_another(before)
        for key, value in held.items():
            if not isinstance(value, Tensor) or value.dim() == 0 or key == "step":
                continue
            shape = tuple(value.shape)
            if shape in fitting:
                if moved_away:
                    self._refuse_pattern(key)
            elif self.fused or self._is_of_another_size(shape, last, sizes):
                self._refuse_size(key, shape)

    def _is_of_another_size(
        self, shape: tuple[int, ...], last: int | None, sizes: Iterable[int]
    ) -> bool:
        """Whether a shape that does not fit was meant for a number per entry. One number is for all
        of them, as a column factor is. What other packages keep may be a projection or the like.
        """
        block = tuple(self.values.shape[1:])
        if shape in {(last,), (last, *block)}:
            return True
        return shape[1:] == block and shape[0] != 1 and (self._is_torchs() or shape[0] in sizes)

    def _is_another(self, before: Any) -> bool:
        """Whether the layer's pattern is another of as many non-zeros. Of another number, whoever
        gave the state that size has moved it.
        """
        crow, col = self.layer.crow_indices, self.layer.col_indices
        return before.col_indices.shape == col.shape and not before.equals(crow, col)

    def _is_torchs(self) -> bool:
        kinds = [kind for kind in type(self.optimizer).__mro__ if kind is not Optimizer]
        return any(kind.__module__.startswith("torch.optim.") for kind in kinds)

    def _refuse_size(self, key: Any, shape: tuple[int, ...]) -> NoReturn:
        raise RuntimeError(
            f"optimizer: state {key!r} of {self.layer.label()} has shape {shape}, but its "
            f"weight_values have {tuple(self.values.shape)}: the layer was given another number of "
            "non-zeros, or the optimizer a state of other parameters (in another order?); "
            + self._cure()
        )

    def _refuse_pattern(self, key: Any) -> NoReturn:
        raise RuntimeError(
            f"optimizer: state {key!r} of {self.layer.label()} belongs to the pattern that it had "
            "before another one was loaded, to other weights now; " + self._cure()
        )

    def _cure(self) -> str:
        return (
            "load the optimizer's state that belongs to them, build a new "
            f"{type(self.optimizer).__name__}, or let a rewirer of dsr_kernels.rewiring (Static, "
            "too) move the state when the model changes"
        )
