"""Patterns, and the plans that are made of them: built on first use, kept while a pattern lives.

A plan holds what the kernels derive from a pattern: offset tables, the transposed pattern, blocks.
It is worthless once the index tensors it was made of hold something else. Their versions do not
tell: writes through `.data`, NumPy and DLPack views and torch.distributed count none.

So the contents are frozen. A Pattern shares the memory of the index tensors copy-on-write, by
torch's own mechanism: whoever asks torch for memory to write to is given a copy, the Pattern keeps
what was there, and the tensor stops being shared, which is seen at the next call. Nothing is read
or copied as long as nobody writes.

Some memory cannot be shared in this way: that of other processes, of NumPy arrays, and memory to
which something may still hold an address. There the Pattern has a copy, and every call compares.
What torch does not know of stays unseen: an address that somebody keeps as a number and, of index
tensors without an owner, a DLPack capsule or a collective that is still under way.

A pattern may have an owner, a sparse layer. Its values belong to its pattern, so the kernels refuse
index tensors of it that something else has written to.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from dsr_kernels.backends.address import address_to_read, is_shared
from dsr_kernels.backends.locks import Rank, make_lock
from dsr_kernels.backends.pattern import (
    KeptCall,
    KeptPlan,
    Owner,
    Pattern,
    Place,
    Plan,
    capturing,
    is_index,
    place_of,
    tensors_of,
    written_by_another,
)
from dsr_kernels.backends.tensors import look_of

MAX_PLANS = 1024  # of all patterns: one for each pattern, direction and input size
# Of the CPU's plans together; or, where that is more, so many times each pattern's largest plan:
# four input sizes in both directions. (A CUDA graph that was recorded reads the plans of a GPU.)
MAX_BYTES, MAX_EACH = 256 << 20, 8
MAX_CALLS = 256  # of one pattern: one for each op and look of its tensors

AnyPlan = TypeVar("AnyPlan", bound=Plan)
Key = TypeVar("Key", bound=Hashable)


class Patterns:
    """All patterns that are in use."""

    def __init__(self, max_plans: int = MAX_PLANS, max_bytes: int = MAX_BYTES) -> None:
        self._max_plans, self._max_bytes = max_plans, max_bytes
        self._clock = 0
        self._frozen: dict[Place, weakref.ref[Pattern]] = {}
        # Those with an owner: by the pair of tensors, and by the storage of each of the two.
        self._owned: dict[tuple, weakref.WeakSet[Pattern]] = {}
        self._in_storage: dict[int, weakref.WeakSet[Pattern]] = {}
        self._loose: dict[tuple, Pattern] = {}  # those without, by the pair of tensors
        self._purge_at = 64
        self._lock = make_lock(Rank.PATTERNS)
        self.changes = 0  # how often an owner has taken on a pattern, perhaps the one it had

    # --- plans ---

    def plan(
        self,
        crow_indices: Tensor,
        col_indices: Tensor,
        key: Key,
        build: Callable[[Tensor, Tensor, Key], AnyPlan],
    ) -> AnyPlan:
        """build(crow_indices, col_indices, key), or what it returned before.

        A plan must not hold the index tensors. Raises RuntimeError for those of a sparse layer that
        something else has written to.
        """
        pattern = self.find(crow_indices, col_indices)
        if pattern.guard is not None and (look := pattern.guard()) is not None:
            look()
        kept = pattern.plans.get((build, key))
        self._clock += 1
        if kept is not None:
            kept.used = self._clock
            return kept.plan  # type: ignore[return-value]  # `build`, a part of the key, made it
        built = build(crow_indices, col_indices, key)
        with self._lock:
            pattern.plans[build, key] = KeptPlan(built, self._clock, crow_indices.is_cpu)
            self._drop_the_oldest()
        return built

    def call(self, pattern: Pattern | None, key: Hashable, *tensors: Tensor | None) -> Any:
        """What `keep_call` was given for calls of this key, and of tensors of this look.

        None where nothing is known. Raises nothing but what the pattern's owner raises.
        """
        if pattern is None:
            return None
        for kept in pattern.calls.get(key, ()):
            if kept.look.fits(*tensors):
                if pattern.guard is not None and (watch := pattern.guard()) is not None:
                    watch()
                self._clock += 1
                for plan in kept.plans:
                    plan.used = self._clock
                return kept.call
        return None

    def keep_call(
        self,
        pattern: Pattern,
        key: Hashable,
        tensors: Sequence[Tensor | None],
        call: Any,
    ) -> None:
        """Has `call` return `call`, for as long as its `plans` are kept, which it runs."""
        look = look_of(*tensors)
        with self._lock:
            kept = [kept for kept in pattern.plans.values() if kept.plan in call.plans]
            if sum(map(len, pattern.calls.values())) >= MAX_CALLS:
                pattern.calls.clear()
            others = pattern.calls.get(key, [])
            pattern.calls[key] = [KeptCall(look, call, kept), *others]

    def plans(self) -> list[Plan]:
        """Every plan there is."""
        with self._lock:
            self._purge()
            return [k.plan for pattern in self._all() for k in pattern.plans.values()]

    def clear(self) -> None:
        """Drops every plan."""
        with self._lock:
            for pattern in self._all():
                pattern.plans.clear()
                pattern.calls.clear()
            self._loose.clear()

    def _all(self) -> list[Pattern]:
        owned = [pattern for together in list(self._owned.values()) for pattern in together]
        return list({id(p): p for p in [*self._loose.values(), *owned]}.values())

    def _drop_the_oldest(self) -> None:
        """Where there are too many plans, or where the CPU's take too much."""
        everything = self._all()
        sizes = [[kept.bytes for kept in pattern.plans.values()] for pattern in everything]
        excess = sum(map(len, sizes)) - self._max_plans
        most = max(self._max_bytes, MAX_EACH * sum(max(each, default=0) for each in sizes))
        too_much = sum(map(sum, sizes)) - most
        if excess <= 0 and too_much <= 0:
            return
        ages = [(kept.used, p, key) for p in everything for key, kept in p.plans.items()]
        for _, pattern, key in sorted(ages, key=lambda age: age[0]):
            size = pattern.plans[key].bytes
            if excess > 0 or (too_much > 0 and size > 0):
                del pattern.plans[key]
                pattern.calls.clear()
                excess, too_much = excess - 1, too_much - size
        for tensors in [t for t, pattern in self._loose.items() if not pattern.plans]:
            del self._loose[tensors]

    # --- patterns ---

    def own(
        self, crow_indices: Tensor, col_indices: Tensor, owner: Owner, known: Pattern | None
    ) -> Pattern:
        """The pattern of the owner's tensors: `known`, what it had before, if that is the same.

        Only the owner may change these tensors, as long as it keeps the Pattern.
        """
        with self._lock:
            self.changes += 1
            if known is not None and known.equals(crow_indices, col_indices):
                pattern = known
                self._forget(pattern)
                pattern.hold(crow_indices, col_indices)
            else:
                pattern = Pattern(crow_indices, col_indices, owner)
                for old in list(self._owned.get(pattern.tensors, ())):
                    if old.owner is not None and old.owner() is owner:
                        self._disown(old)  # it was overwritten; a rewirer may keep it alive
            if len(self._owned) > self._purge_at:
                self._purge()
            self._owned.setdefault(pattern.tensors, weakref.WeakSet()).add(pattern)
            for storage in pattern.tensors[:2]:
                self._in_storage.setdefault(storage, weakref.WeakSet()).add(pattern)
            self._freeze(pattern)
        return pattern

    def owners_in(self, index: Tensor) -> list[Owner]:
        """Whose patterns lie in the tensor's memory."""
        with self._lock:
            found = self._in_storage.get(index.untyped_storage()._cdata, ())
            owners = [p.owner() for p in found if p.owner is not None and not p.expired()]
            return [owner for owner in owners if owner is not None]

    def owner_of(self, crow_indices: Tensor, col_indices: Tensor) -> Owner | None:
        """Whose index tensors these are, or share the memory of."""
        with self._lock:
            for pattern in self._owned.get(tensors_of(crow_indices, col_indices), ()):
                if not pattern.expired() and pattern.owner is not None:
                    return pattern.owner()
        return None

    def known(self, crow_indices: Tensor, col_indices: Tensor) -> Pattern | None:
        """The pattern that index tensors hold, if a look at their places is enough to tell."""
        reference = self._frozen.get(place_of(crow_indices, col_indices))
        if reference is None or not (is_shared(crow_indices) and is_shared(col_indices)):
            return None
        # Others may lie at the same place.
        return reference() if is_index(crow_indices) and is_index(col_indices) else None

    def find(self, crow_indices: Tensor, col_indices: Tensor) -> Pattern:
        """The pattern that the tensors hold. Raises RuntimeError as `plan` does."""
        if (pattern := self.known(crow_indices, col_indices)) is not None:
            return pattern
        with self._lock:
            return self._look(crow_indices, col_indices)

    def _look(self, crow_indices: Tensor, col_indices: Tensor) -> Pattern:
        """`find` for tensors that are not shared, or no longer: by what they hold."""
        for name, index in (("crow_indices", crow_indices), ("col_indices", col_indices)):
            if index.dtype != torch.int32:
                raise ValueError(f"{name}: expected int32, got {index.dtype}")
            address_to_read(index)  # refuses those without memory
        tensors = tensors_of(crow_indices, col_indices)
        owned = [p for p in self._owned.get(tensors, ()) if not p.expired()]
        for pattern in owned:
            if not pattern.equals(crow_indices, col_indices):
                raise RuntimeError(written_by_another(pattern))
        if owned:
            return self._hold(owned[0], crow_indices, col_indices)
        loose = self._loose.get(tensors)
        if loose is not None and loose.equals(crow_indices, col_indices):
            return self._hold(loose, crow_indices, col_indices)
        for gone in [t for t, pattern in self._loose.items() if pattern.expired()]:
            del self._loose[gone]
        pattern = self._loose[tensors] = Pattern(crow_indices, col_indices, None)
        self._freeze(pattern)
        return pattern

    def _hold(self, pattern: Pattern, crow_indices: Tensor, col_indices: Tensor) -> Pattern:
        """Shares the tensors' memory again, where it can be."""
        if capturing(crow_indices):
            return pattern  # a graph relies on the addresses that it has seen
        if pattern.shared or pattern.can_share(crow_indices, col_indices):
            self._thaw(pattern)
            pattern.hold(crow_indices, col_indices)
            self._freeze(pattern)
        return pattern

    def _freeze(self, pattern: Pattern) -> None:
        if not pattern.shared:
            return
        place = pattern.place

        def gone(reference: weakref.ref[Pattern]) -> None:
            if self._frozen.get(place) is reference:
                self._frozen.pop(place, None)

        self._frozen[place] = weakref.ref(pattern, gone)

    def _thaw(self, pattern: Pattern) -> None:
        reference = self._frozen.get(pattern.place)
        if reference is not None and reference() is pattern:
            del self._frozen[pattern.place]

    def _forget(self, pattern: Pattern) -> None:
        self._thaw(pattern)
        self._disown(pattern)

    def _disown(self, pattern: Pattern) -> None:
        """Its tensors hold it no longer."""
        self._owned.get(pattern.tensors, weakref.WeakSet()).discard(pattern)
        for storage in pattern.tensors[:2]:
            self._in_storage.get(storage, weakref.WeakSet()).discard(pattern)

    def _purge(self) -> None:
        """Leaves out what is gone."""
        loose = self._loose.items()
        self._loose = {tensors: pattern for tensors, pattern in loose if not pattern.expired()}
        self._owned = {tensors: found for tensors, found in self._owned.items() if found}
        self._in_storage = {place: found for place, found in self._in_storage.items() if found}
        self._purge_at = 64 + 2 * len(self._owned)


patterns = Patterns()
