"""Locks that a child of os.fork finds free, and what they guard whole.

A child has but the thread that forked. A lock that another thread had would never be given back,
and what that one was changing would stay half changed. So a fork waits for these locks, for a while
only: whoever has one for longer must not stop the process, and the child's are new in any case.
"""

from __future__ import annotations

import enum
import os
import threading
from typing import Any

PATIENCE = 1.0  # seconds for each; they are had for microseconds


class Rank(enum.IntEnum):
    """A thread that has a lock takes none of a lower rank."""

    EXCHANGE = 0
    PATTERNS = 1
    BUFFERS = 2


_all: list[tuple[Rank, Any]] = []  # by rank; they live as long as the process
_taken = threading.local()  # by a thread that forks


def make_lock(rank: Rank) -> Any:
    """A threading.RLock."""
    made = threading.RLock()
    _all.append((rank, made))
    _all.sort(key=lambda each: each[0])
    return made


def _take() -> None:
    _taken.locks = [lock for _, lock in _all if lock.acquire(timeout=PATIENCE)]


def _give_back() -> None:
    for lock in reversed(_taken.__dict__.pop("locks", [])):
        lock.release()


def _renew() -> None:
    _taken.__dict__.pop("locks", None)
    for _, lock in _all:
        lock._at_fork_reinit()


os.register_at_fork(before=_take, after_in_parent=_give_back, after_in_child=_renew)
