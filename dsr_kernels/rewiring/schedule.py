"""When to rewire, and values that change while training goes on."""

from __future__ import annotations

import itertools
import math
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from dsr_kernels.choices import check_choice

KINDS = ("constant", "cosine", "cubic", "exponential")
DEFAULT_EVERY = 100  # the paper's interval at the start of training


def as_int(value: Any, name: str, at_least: int) -> int:
    """`value` as an int, or an error that names the argument."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < at_least:
        raise ValueError(f"{name}: expected an integer of at least {at_least}, got {value!r}")
    return number


def as_number(
    value: Any, name: str, low: float = -math.inf, high: float = math.inf, ends: str = "[)"
) -> float:
    """`value` as a finite float, or an error that names the argument.

    `ends` are the brackets of the interval from `low` to `high`: "[]" includes both, "()" neither.
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else None
    except OverflowError:
        number = None
    if (
        number is not None
        and math.isfinite(number)
        and (number > low or (ends[0] == "[" and number == low))
        and (number < high or (ends[1] == "]" and number == high))
    ):
        return number
    expected = "a finite number"
    if math.isfinite(low) and math.isfinite(high):
        expected = f"a number in {ends[0]}{low}, {high}{ends[1]}"
    elif math.isfinite(low):
        expected += f" >{'=' * (ends[0] == '[')} {low}"
    raise ValueError(f"{name}: expected {expected}, got {value!r}")


def three_quarters(total: int | None) -> int | None:
    """Where rewires end in a training of `total` iterations, unless `stop` says: RigL's share, in
    whose last quarter all weights train.
    """
    return None if total is None else as_int(total, "total", 1) * 3 // 4


@dataclass(frozen=True)
class Schedule:
    """Intervals between rewires: each holds from its start iteration (0-based) on, up to `stop`.

    After `n` finished iterations a rewire is due when `n` is a multiple of the interval that held
    in the last of them. With [(0, 100), (1000, 200)] that is after 100, 200, ..., 1000, 1200,
    1400, ... iterations. No rewire is due after more than `stop` iterations.
    """

    segments: tuple[tuple[int, int], ...]
    stop: int | None = None

    @classmethod
    def make(
        cls,
        every: int | None,
        schedule: Sequence[tuple[int, int]] | None,
        stop: int | None,
        total: int | None = None,
    ) -> Schedule:
        """Checks the arguments of a rewirer. Raises ValueError naming the argument. Warns where
        `total` leaves no time for a rewire.
        """
        if every is not None and schedule is not None:
            raise ValueError(
                f"every, schedule: expected at most one of them, got every={every!r} and "
                f"schedule={schedule!r}"
            )
        if schedule is None:
            interval = DEFAULT_EVERY if every is None else as_int(every, "every", 1)
            segments: tuple[tuple[int, int], ...] = ((0, interval),)
        else:
            segments = cls._checked(schedule)
        end = three_quarters(total)
        if stop is not None:
            return cls(segments, as_int(stop, "stop", 0))
        made = cls(segments, end)
        if end is not None and not made.is_ever_due():
            warnings.warn(
                f"total: none of {total} iterations is followed by a rewire, for these end after "
                f"three quarters, iteration {end}; use a smaller `every`, or a larger `stop`",
                stacklevel=4,
            )
        return made

    @staticmethod
    def _checked(schedule: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        try:
            pairs = [(start, every) for start, every in schedule]
        except (TypeError, ValueError):
            pairs = []
        if not pairs:
            raise ValueError(
                f"schedule: expected pairs [(start_iteration, every), ...], got {schedule!r}"
            )
        segments = tuple(
            (as_int(start, "schedule: start_iteration", 0), as_int(every, "schedule: every", 1))
            for start, every in pairs
        )
        starts = [start for start, _ in segments]
        if any(a >= b for a, b in itertools.pairwise(starts)):
            raise ValueError(f"schedule: expected rising start iterations, got {starts}")
        return segments

    def is_ever_due(self) -> bool:
        """Whether there is a rewire at all."""
        starts = [start for start, _ in self.segments]
        ends = [*starts[1:], math.inf]
        stop = math.inf if self.stop is None else self.stop
        return any(
            (start // every + 1) * every <= min(end, stop)
            for (start, every), end in zip(self.segments, ends, strict=True)
        )

    def due(self, finished: int) -> bool:
        """Whether to rewire after `finished` iterations."""
        if self.stop is not None and finished > self.stop:
            return False
        every = None
        for start, interval in self.segments:
            if start < finished:
                every = interval
        return every is not None and finished % every == 0


@dataclass(frozen=True)
class Anneal:
    """A value that moves from `start` to `end` between the iterations `begin` and `begin + length`.

    With u = (iteration - begin) / length, limited to [0, 1]:
    constant: start; cosine: end + (start - end) (1 + cos(pi u)) / 2 (RigL's drop fraction);
    cubic: end + (start - end) (1 - u)^3 (Zhu & Gupta 2017, eq. 1);
    exponential: start (end / start)^u.
    """

    kind: str
    start: float
    end: float = 0.0
    begin: int = 0
    length: int = 1

    def __post_init__(self) -> None:
        check_choice(self.kind, "schedule", KINDS)
        as_number(self.start, "start")
        as_number(self.end, "end")
        if self.kind == "exponential" and not (self.start > 0 and self.end > 0):
            raise ValueError(
                "schedule: an exponential one needs a start and an end above 0, got "
                f"{self.start} and {self.end}"
            )
        as_int(self.begin, "begin", 0)
        as_int(self.length, "length", 1)

    def at(self, iteration: int) -> float:
        """The value after `iteration` iterations."""
        u = min(max((iteration - self.begin) / self.length, 0.0), 1.0)
        if self.kind == "constant" or u == 0:
            return self.start
        if u == 1:
            return self.end
        if self.kind == "cosine":
            return self.end + (self.start - self.end) * (1 + math.cos(math.pi * u)) / 2
        if self.kind == "cubic":
            return self.end + (self.start - self.end) * (1 - u) ** 3
        return self.start * (self.end / self.start) ** u
