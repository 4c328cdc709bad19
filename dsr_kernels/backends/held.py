"""A sparse weight as it is at one moment, for a pass beside which another thread may change it.

A rewire or a load gives a layer's tensors other data. A pass that read the values before that and
the indices after it would compute with a weight that never was, and a kernel would read memory that
is free. So whoever exchanges a layer's tensors has the lock `exchange`, and so has a pass while it
reads which they are. It then computes with tensors of its own, which share their memory and stay.

Nobody has `exchange` while a kernel runs.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dsr_kernels.backends import retired
from dsr_kernels.backends.locks import Rank, make_lock
from dsr_kernels.backends.pattern import Pattern
from dsr_kernels.backends.patterns import patterns

exchange = make_lock(Rank.EXCHANGE)  # of all layers: it is had for microseconds


class HeldPattern(NamedTuple):
    indices: tuple[Tensor, Tensor]  # crow_indices, col_indices
    found: Pattern  # lives as long as this does, and so do its plans


class Held(NamedTuple):
    values: Tensor
    pattern: HeldPattern

    @property
    def weight(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values, crow_indices, col_indices."""
        return self.values, *self.pattern.indices


def hold(values: Tensor, crow_indices: Tensor, col_indices: Tensor) -> Held:
    """The weight as it is now. Raises RuntimeError where `patterns.find` or `refuse_retired` do."""
    with exchange:
        return Held(hold_values(values), hold_pattern(crow_indices, col_indices))


def hold_pattern(crow_indices: Tensor, col_indices: Tensor) -> HeldPattern:
    with exchange:
        # Found first: whether the memory can be shared copy-on-write shows in who else has it.
        found = patterns.find(crow_indices, col_indices)
        return HeldPattern((crow_indices.data, col_indices.data), found)


def take_values(values: Tensor) -> Tensor:
    """As `hold_values`, for a kernel and nothing in between."""
    retired.refuse_retired(values)
    return values.data


def hold_values(values: Tensor) -> Tensor:
    """Called while one has `exchange`, together with what reads the pattern."""
    if retired.is_spared(values):
        return values  # an outer part of the same pass has them
    retired.refuse_retired(values)
    return retired.spare(values.data)
