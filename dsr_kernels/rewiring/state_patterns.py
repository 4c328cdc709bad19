"""Which pattern an optimizer's state belongs to, known beside the state as it changes hands.

A model may take on another pattern beside its optimizer: "best weights" are restored, a pattern is
replaced by hand. The state then belongs to the old one. Before the optimizer's next step, or the
next rewire, what belongs to a position of both patterns moves there, as in a rewire. State of a
size that fits neither is refused there, before a fused step writes beyond its end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.nn import SparseModule
from dsr_kernels.rewiring.entry_state import EntryState, Factor, Holder, Remembered
from dsr_kernels.rewiring.layers import KeptPattern, SparseLayer
from dsr_kernels.rewiring.nested import nested_optimizers
from dsr_kernels.topology import Topology


@dataclass(slots=True)
class _Known:
    """What was so of a layer when it was last looked at."""

    name: str
    module: SparseModule
    parameter: nn.Parameter
    pattern: KeptPattern  # the state belongs to it
    col: Tensor  # the module's buffer
    version: int
    holders: list[Holder] = field(default_factory=list)  # the dicts that held the state


# Of state that moves: the dict, its key, and the tensor to be put there.
Change = tuple[Holder, Any, Tensor]


class StatePatterns:
    """Of all that some optimizers hold. It is itself the hook that they call before a step.

    Whoever makes a rewirer on one of these optimizers shares it, so that two rewirers do not move
    the same state twice. It knows no rewirer.
    """

    def __init__(self) -> None:
        self.roots: list[Any] = []  # what rewirers were given
        self._known: dict[int, _Known] = {}  # by the id of the parameter
        # Of each layer: the module's buffers, and what was there when last looked at.
        self._seen: list[tuple[dict[str, Any], Tensor, int]] = []
        # Each optimizer's state when last looked at: one that loads gets another dict.
        self._states: list[tuple[Any, Any]] = []
        self._looks = 0  # to come: an optimizer makes its state in a step

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy has other parameters."""
        self.__dict__.update(state)
        self._known = {id(known.parameter): known for known in self._known.values()}

    @staticmethod
    def of(root: Any, known: StatePatterns | None = None) -> StatePatterns:
        """That of `root`; `known`, or a new one, where its optimizers have none yet."""
        optimizers = nested_optimizers(root)
        found = [hook for one in optimizers for hook in _hooks(one).values() if _is_ours(hook)]
        first = (*found, known or StatePatterns())[0]
        for other in found:
            first._take_over(other)
        if all(one is not root for one in first.roots):
            first.roots.append(root)
        for optimizer in nested_optimizers(*first.roots):
            first._hook_into(optimizer)
        return first

    def _take_over(self, other: StatePatterns) -> None:
        """Knows what another one knows, which then goes."""
        if other is self:
            return
        for optimizer in nested_optimizers(*other.roots):
            hooks = _hooks(optimizer)
            for key in [key for key, hook in hooks.items() if hook is other]:
                del hooks[key]
        self.roots += [root for root in other.roots if all(root is not one for one in self.roots)]
        self._known = other._known | self._known
        self._states += other._states
        self._looks = 2
        self._note([])

    def _hook_into(self, optimizer: Any) -> None:
        """Wrappers that never called Optimizer's constructor have no hooks; what they wrap has."""
        if hasattr(optimizer, STEP_HOOKS) and self not in _hooks(optimizer).values():
            optimizer.register_step_pre_hook(self)
        if all(optimizer is not one for one, _ in self._states):
            self._states.append((optimizer, _state(optimizer)))

    def know(self, layers: list[SparseLayer]) -> None:
        """From now on knows these layers, too; their state belongs to their present patterns."""
        new = [layer for layer in layers if id(layer.weight_values) not in self._known]
        for layer in new:
            module, col = layer.module, layer.module.col_indices
            self._known[id(layer.weight_values)] = _Known(
                layer.name, module, layer.weight_values, KeptPattern(module), col, _version(col)
            )
        if new:
            self._looks = 2
            self._note([])

    def rewired(self, layers: list[SparseLayer]) -> None:
        """The state of these layers has moved to their present patterns."""
        known = (self._known.get(id(layer.weight_values)) for layer in layers)
        self._note([one for one in known if one is not None])

    def moved_parameters(self) -> list[nn.Parameter]:
        """Those whose state it moves, which dsr_kernels.nn.step_check then need not refuse."""
        return [known.parameter for known in self._known.values()]

    # ---- hooks ----------------------------------------------------------------------------------

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Before each step of each of the optimizers. Raises what `settle` raises."""
        if self._looks or self.unsettled():
            self.settle()
            self._looks = max(0, self._looks - 1)

    def unsettled(self) -> bool:
        """Whether state was loaded, or a pattern may have changed. In each step: so nothing but
        identities and versions are looked at.
        """
        if self._loaded():
            return True
        try:
            for buffers, seen, version in self._seen:
                col = buffers["col_indices"]
                if col is not seen or col._version != version:
                    return True
        except RuntimeError:  # a tensor made in inference mode has no version
            return True
        return False

    def _loaded(self) -> bool:
        """Whether an optimizer has loaded state since the last look. The model may be loaded later,
        so that this is no time to judge it.
        """
        return any(_state(optimizer) is not state for optimizer, state in self._states)

    # ---- the move -------------------------------------------------------------------------------

    @torch.no_grad()
    def settle(self) -> None:
        """Moves all state to the present patterns.

        State that was loaded since the last look belongs to the present pattern already. Raises
        ValueError, before anything has changed, for state that fits neither pattern.
        """
        remembered, loaded = Remembered(*self.roots), self._loaded()
        changes: list[Change] = []
        factors: list[Factor] = []
        for known in self._used():
            if _changed(known) and not known.pattern.is_of(known.module):
                moved, state = self._move(known, remembered, loaded)
                changes += moved
                factors += state.factors
            else:
                remembered.check_sizes(known.name, known.parameter)
        for holder, key, tensor in changes:
            holder[key] = tensor
        for factor in factors:
            factor.renew()
        for known in self._used():
            known.holders = remembered.holders(known.parameter)
        self._note(self._used())
        self._states = [(one, _state(one)) for one in remembered.optimizers]

    def _used(self) -> list[_Known]:
        """Those of which the layer's parameter is still the one known."""
        return [
            known
            for known in self._known.values()
            if known.module._parameters.get("weight_values") is known.parameter
        ]

    def _move(
        self, known: _Known, remembered: Remembered, loaded: bool
    ) -> tuple[list[Change], EntryState]:
        """What is to be changed of a layer's state, and where that is held."""

        def stayed(holder: Holder) -> bool:
            return not loaded or any(holder is one for one in known.holders)

        name, parameter, nnz = known.name, known.parameter, known.module.nnz
        remembered.of(name, parameter, nnz, lambda holder: not stayed(holder))
        try:
            old = remembered.of(name, parameter, known.pattern.indices[1].numel(), stayed)
        except ValueError:
            # Whoever changed the pattern may have moved the state, which then has the new size.
            remembered.of(name, parameter, nnz)
            return [], EntryState()
        where = _Where(known)
        moved: dict[int, Tensor] = {}  # a tensor may be held twice
        for holder, key, fresh in old.slots:
            tensor = holder[key]
            if id(tensor) not in moved:
                moved[id(tensor)] = where.move(tensor, fresh)
        return [(holder, key, moved[id(holder[key])]) for holder, key, _ in old.slots], old

    def _note(self, settled: list[_Known]) -> None:
        """The state of these layers belongs to their present patterns."""
        for known in settled:
            if _changed(known):
                known.pattern = KeptPattern(known.module)
                known.col = known.module.col_indices
                known.version = _version(known.col)
        self._seen = [(known.module._buffers, known.col, known.version) for known in self._used()]


class _Where:
    """Where the entries of a new pattern were in the old one."""

    def __init__(self, known: _Known) -> None:
        shape, device = known.module.weight_shape, known.module.col_indices.device
        old = Topology(shape, *(t.to(device) for t in known.pattern.indices)).linear_positions()
        new = known.module.topology.linear_positions()
        self.source = torch.searchsorted(old, new).clamp_(max=max(old.numel() - 1, 0))
        if old.numel():
            self.survived = old[self.source] == new
        else:
            self.survived = torch.zeros_like(new, dtype=torch.bool)

    def move(self, tensor: Tensor, fresh: float) -> Tensor:
        moved = tensor.new_full((self.source.numel(), *tensor.shape[1:]), fresh)
        moved[self.survived] = tensor[self.source[self.survived]]
        return moved


STEP_HOOKS = "_optimizer_step_pre_hooks"


def _hooks(optimizer: Any) -> dict[int, Any]:
    return getattr(optimizer, STEP_HOOKS, {})


def _state(optimizer: Any) -> Any:
    """Its own: a wrapper may show another's, or make one up at each access."""
    return getattr(optimizer, "__dict__", {}).get("state")


def _is_ours(hook: Any) -> bool:
    return isinstance(hook, StatePatterns)


def _changed(known: _Known) -> bool:
    col = known.module.col_indices
    return col is not known.col or _version(col) != known.version or col.is_inference()


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
