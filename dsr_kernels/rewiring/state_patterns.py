"""Which pattern an optimizer's state belongs to, known beside the state as it changes hands.

A model may take on another pattern beside its optimizer: "best weights" are restored, a pattern is
replaced by hand. The state then belongs to the old one. Before the optimizer's next step, or the
next rewire, what belongs to a position of both patterns moves there, as in a rewire. State of a
size that fits neither is refused there, before a fused step writes beyond its end.

State that was loaded since the last step belongs to whatever pattern the model has at the next one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.backends.patterns import patterns
from dsr_kernels.rewiring.entry_state import EntryState, Factor, Holder, Remembered
from dsr_kernels.rewiring.known_layer import KnownLayer, Where
from dsr_kernels.rewiring.layers import SparseLayer
from dsr_kernels.rewiring.nested import nested_optimizers, own_state, was_loaded, weakly

LOOKS = 2  # steps that are looked at, to learn what they make; nested optimizers count their own
# Of state that moves: the dict, its key, and the tensor to be put there.
Change = tuple[Holder, Any, Tensor]


class StatePatterns:
    """Of all that some optimizers hold. It is itself the hook that they call before a step.

    Whoever makes a rewirer on one of these optimizers shares it, so that two rewirers do not move
    the same state twice. It knows no rewirer, and keeps neither optimizers nor modules alive.
    """

    def __init__(self) -> None:
        self.onlookers: weakref.WeakSet[Any] = weakref.WeakSet()  # see `__call__`
        self._roots: list[Callable[[], Any]] = []  # what rewirers were given
        self._known: dict[int, KnownLayer] = {}  # by the id of the parameter
        # Each optimizer's state when last looked at: one that loads gets another dict.
        self._states: list[tuple[Callable[[], Any], Any]] = []
        self._tables: list[Holder] = []  # the dicts that have parameters as keys
        self._rebound: set[Any] = set()  # keys under which a step puts other tensors
        self._looks = 0  # to come: an optimizer makes its state in a step
        self._looking = False  # in the step that is being made
        self._steps = 0  # that were begun
        self._changes = -1  # of all patterns, when last looked at
        self._turns: list[KnownLayer] = []  # whose state is looked at in the next steps

    def __getstate__(self) -> dict[str, Any]:
        roots = [root() for root in self._roots]
        states = [(one(), state) for one, state in self._states]
        own = {"_roots": roots, "_states": states, "_known": self._used(), "_turns": []}
        return self.__dict__ | own | {"onlookers": None}  # they come again

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy has other parameters."""
        self.__dict__.update(state)
        self.onlookers = weakref.WeakSet()
        self._roots = [weakly(one) for one in state["_roots"] if one is not None]
        self._states = [(weakly(one), held) for one, held in state["_states"] if one is not None]
        self._known = {id(known.parameter): known for known in state["_known"]}
        self._changes = -1

    @property
    def roots(self) -> list[Any]:
        """What rewirers were given, as far as it lives, and the optimizers found within."""
        alive = [root() for root in self._roots] + [one() for one, _ in self._states]
        return list({id(one): one for one in alive if one is not None}.values())

    @staticmethod
    def of(root: Any, known: StatePatterns | None = None) -> StatePatterns:
        """That of `root`; `known`, or a new one, where its optimizers have none yet."""
        optimizers = nested_optimizers(root)
        found = [hook for one in optimizers for hook in _hooks(one).values() if _is_ours(hook)]
        first = (*found, known or StatePatterns())[0]
        for other in found:
            first._take_over(other)
        if all(one() is not root for one in first._roots):
            first._roots.append(weakly(root))
        for optimizer in nested_optimizers(*first.roots):
            first._hook_into(optimizer)
        return first

    def _take_over(self, other: StatePatterns) -> None:
        """Knows what another one knows, which then goes."""
        if other is self:
            return
        for optimizer in nested_optimizers(*other.roots):
            for name in (STEP_HOOKS, AFTER_HOOKS):
                hooks = getattr(optimizer, name, {})
                for key in [key for key, hook in hooks.items() if other in (hook, _self(hook))]:
                    del hooks[key]
        own = self.roots
        self._roots += [one for one in other._roots if all(one() is not root for root in own)]
        self._known = other._known | self._known
        self._states += other._states
        self._tables += [
            one for one in other._tables if all(one is not own for own in self._tables)
        ]
        self._rebound |= other._rebound
        self.onlookers |= other.onlookers
        self._steps = max(self._steps, other._steps)
        self._looks, self._changes = LOOKS, -1

    def _hook_into(self, optimizer: Any) -> None:
        """Wrappers that never called Optimizer's constructor have no hooks; what they wrap has."""
        if hasattr(optimizer, STEP_HOOKS) and self not in _hooks(optimizer).values():
            optimizer.register_step_pre_hook(self)
            optimizer.register_step_post_hook(self.stepped)
        if all(optimizer is not one() for one, _ in self._states):
            state = None if was_loaded(optimizer) else own_state(optimizer)
            self._states.append((weakly(optimizer), state))

    def know(self, layers: list[SparseLayer]) -> None:
        """From now on knows these layers, too; their state belongs to their present patterns,
        unless it was loaded.
        """
        new = [layer for layer in layers if id(layer.weight_values) not in self._known]
        if not new:
            return
        self._tables = [table.content for table in Remembered(*self.roots).tables]
        for layer in new:
            known = self._known[id(layer.weight_values)] = KnownLayer(layer)
            if not self._loaded():
                self._note_state(known)
        self._looks = LOOKS

    def rewired(self, layers: list[SparseLayer]) -> None:
        """The state of these layers has moved to their present patterns."""
        for layer in layers:
            known = self._known.get(id(layer.weight_values))
            if known is not None and known.is_used:
                known.note_pattern()
                self._note_state(known)

    def moved_parameters(self) -> list[nn.Parameter]:
        """Those whose state it moves, which dsr_kernels.nn.step_check then need not refuse."""
        return [known.parameter for known in self._known.values()]

    # ---- hooks ----------------------------------------------------------------------------------

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Before each step of each of the optimizers. Raises what `settle` raises.

        Where a layer may have been given weights, onlookers learn it before the step changes them:
        their `weights_given` is called.
        """
        if torch.compiler.is_compiling():  # a trace would take what is so now for always
            _eagerly(StatePatterns._before_step, self)
        else:
            self._before_step()

    def _before_step(self) -> None:
        self._looking = False
        if self._changes != patterns.changes:
            for onlooker in list(self.onlookers):
                onlooker.weights_given()
        if self._looks or self.unsettled():
            self.settle()
            self._looking, self._looks = True, max(0, self._looks - 1)
        else:
            self._look_at_one()
        self._steps += 1

    def stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """After each step."""
        if torch.compiler.is_compiling():
            _eagerly(StatePatterns._after_step, self)
        else:
            self._after_step()

    def _after_step(self) -> None:
        if self._looking:
            for known in self._used():
                self._rebound |= known.replaced_keys()
                self._note_state(known)

    def unsettled(self) -> bool:
        """Whether state was loaded, or a pattern may have changed. In each step: so layers are
        looked at only where a pattern of any layer has changed.
        """
        if self._loaded():
            return True
        changes = patterns.changes
        if changes == self._changes:
            return False
        if any(known.changed for known in self._used()):
            return True
        self._changes = changes
        return False

    def _loaded(self) -> bool:
        """Whether an optimizer has loaded state since the last look. The model may be loaded later,
        so that this is no time to judge it.
        """
        for reference, state in self._states:
            optimizer = reference()
            if optimizer is not None and own_state(optimizer) is not state:
                return True
        return False

    def _look_at_one(self) -> None:
        """What state is there at a step belongs to the present pattern, whoever has made it. One
        layer in each step, so that a step costs the same for any number of layers.
        """
        if not self._turns:
            self._turns = self._used()
        if self._turns:
            self._note_state(self._turns.pop())

    # ---- the move -------------------------------------------------------------------------------

    @torch.no_grad()
    def settle(self, *, is_step: bool = True) -> None:
        """Moves all state to the present patterns.

        State that was loaded since the last step belongs to the present pattern already; unless
        `is_step`, it still will at the next one. Raises ValueError, before anything has changed,
        for state that fits neither pattern.
        """
        all_changes = patterns.changes
        remembered, loaded = Remembered(*self.roots), self._loaded()
        changes: list[tuple[KnownLayer, Change]] = []
        factors: list[Factor] = []
        for known in self._used():
            if known.changed and not known.pattern.is_of(known.module):
                moved, state = self._move(known, remembered, loaded)
                changes += [(known, change) for change in moved]
                factors += state.factors
            else:
                remembered.check_sizes(known.name, known.parameter)
        for known, (holder, key, tensor) in changes:
            holder[key] = tensor
            known.note_moved(holder, key)
        for factor in factors:
            factor.renew()
        self._tables = [table.content for table in remembered.tables]
        for known in self._used():
            if known.changed:
                known.note_pattern()
            if is_step:
                self._note_state(known)
        if is_step:
            self._states = [(weakly(one), own_state(one)) for one in remembered.optimizers]
            if loaded:
                self._looks = LOOKS
        self._changes = all_changes

    def _used(self) -> list[KnownLayer]:
        return [known for known in self._known.values() if known.is_used]

    def _note_state(self, known: KnownLayer) -> None:
        known.note_state(self._tables, self._steps, self._rebound)

    def _move(
        self, known: KnownLayer, remembered: Remembered, loaded: bool
    ) -> tuple[list[Change], EntryState]:
        """What is to be changed of a layer's state, and where that is held."""

        def stayed(holder: Holder, key: Any) -> bool:
            return known.has_stayed(
                holder, key, loaded=loaded, steps=self._steps, rebound=self._rebound
            )

        name, parameter, blocks = known.name, known.parameter, known.module.blocks
        remembered.of(name, parameter, blocks, lambda *place: not stayed(*place))
        try:
            old = remembered.of(name, parameter, known.pattern.indices[1].numel(), stayed)
        except ValueError:
            # Whoever changed the pattern may have moved the state, which then has the new size.
            remembered.of(name, parameter, blocks)
            return [], EntryState()
        where = Where(known)
        moved: dict[int, Tensor] = {}  # a tensor may be held twice
        for holder, key, fresh in old.slots:
            tensor = holder[key]
            if id(tensor) not in moved:
                moved[id(tensor)] = where.move(tensor, fresh)
        return [(holder, key, moved[id(holder[key])]) for holder, key, _ in old.slots], old


_eagerly = torch._disable_dynamo(lambda method, patterns: method(patterns))
STEP_HOOKS, AFTER_HOOKS = "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"


def _hooks(optimizer: Any) -> dict[int, Any]:
    return getattr(optimizer, STEP_HOOKS, {})


def _self(hook: Any) -> Any:
    return getattr(hook, "__self__", None)


def _is_ours(hook: Any) -> bool:
    return isinstance(hook, StatePatterns)
