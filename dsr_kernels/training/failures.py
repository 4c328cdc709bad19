"""How the processes of a run end together, whatever one of them meets.

A process that fails by itself leaves its sentence in torchrun's store, says it and ends. The others
find their next exchange broken, read the sentence there and end, too. Where none was left, a
process was killed or does not answer: then one of them says which one. For that each shows in the
store that it lives, from a thread: one that waits for the lost one by way of others knows nothing
yet.

Only one process speaks: the one that takes the floor in the store. torchrun sends SIGTERM to all
as soon as one has ended, so each puts that off first. The quiet ones end once the floor is taken.
Where SIGTERM comes first, before training, it may be that of a lost process: the roll is called.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import torch.distributed as dist

from dsr_kernels.errors import (
    Interrupted,
    SaidElsewhere,
    SystemFailed,
    Terminated,
    TrainingStopped,
    UsageError,
    in_words,
)
from dsr_kernels.training.patient_store import PatientStore
from dsr_kernels.training.signals import put_off_sigterm

BEAT_SECONDS = 0.5  # between two signs of life
ROLL_CALL_SECONDS = 3.0  # who shows none for so long is lost
FIRST_SECONDS = 2.0  # whoever comes first to what all meet leaves it so long to the first process
FLOOR_SECONDS = 5.0  # so long one waits for another to speak, and then does it itself
STORE_SECONDS = 5.0  # so long one waits for the store, which a cut link may have taken away
SIGTERM_SECONDS = 20.0  # longer than all of these; torchrun sends SIGKILL after 30
# Keys of the store; the last two have a rank behind them.
WORDS, FLOOR, CALLS, LOST, FOUND, BEATS = "failure", "floor", "calls", "lost", "found", "beats"
# What gloo says of an exchange that has failed, where it does not name itself.
GLOO = r"pair closure|(closed|reset) by peer|broken pipe|socket closed|timed out waiting"
OWN_ERRORS = {kind.__name__: kind for kind in (UsageError, TrainingStopped, SystemFailed)}


class Failures:
    """What went wrong in the processes of a run, in a store that all of them reach."""

    def __init__(self, store: dist.Store, rank: int, hosts: list[str], timeout: float) -> None:
        self.store, self._beats = PatientStore(store, STORE_SECONDS), store
        self.rank, self.hosts, self.timeout = rank, hosts, timeout
        self._ending: BaseException | None = None

    def ending(self, error: BaseException, kept: str = "") -> BaseException:
        """The error that this process ends with after `error`; asked again, the same one.

        Others are told of one that is its own. Of a broken exchange the cause is looked for. It is
        SaidElsewhere where another process speaks. A message that names no way out by itself ends
        with `kept`, which says what the run keeps.
        """
        if self._ending is None:
            put_off_sigterm(SIGTERM_SECONDS)
            self._ending = self._find_ending(error, kept)
        return self._ending

    def _find_ending(self, error: BaseException, kept: str) -> BaseException:
        broken = is_broken_exchange(error)
        try:
            if isinstance(error, SaidElsewhere):
                return self._unless_said(error.error, 0, FLOOR_SECONDS)
            if broken or isinstance(error, Terminated):
                return self._told() or self._missing(error, kept)
            self._tell(error)
            return self._unless_said(self._in_words(error, kept), 0, FIRST_SECONDS)
        except (RuntimeError, OSError):  # the store has gone with the first node
            if isinstance(error, Terminated):
                return self._in_words(error, kept)
            return SystemFailed(_reason(error, self.timeout) + kept) if broken else error

    def _unless_said(self, error: BaseException, first: int, seconds: float) -> BaseException:
        """`error`, where it is this process that says it. The process `first` does so at once, the
        others leave it to that for so many seconds.
        """
        end = time.monotonic() + seconds
        while self.rank != first and time.monotonic() < end and not self.store.check([FLOOR]):
            time.sleep(0.05)
        own = str(self.rank)
        speaks = self.store.compare_set(FLOOR, "", own).decode() == own
        if speaks and _is_unforeseen(error.__cause__):
            traceback.print_exception(error.__cause__, file=sys.stderr)
        return error if speaks else SaidElsewhere(error)

    def _tell(self, error: BaseException) -> None:
        """Leaves the error in the store, unless another process was before."""
        words = {"rank": self.rank, "kind": type(error).__name__, "text": str(error)}
        words["code"] = SaidElsewhere(error).exit_code
        self.store.compare_set(WORDS, "", json.dumps(words))

    def _in_words(self, error: BaseException, kept: str) -> BaseException:
        """What this process says of an error that is its own."""
        who = f"rank {self.rank}: " if self.rank else ""
        if isinstance(error, Interrupted | Terminated):
            way_out = kept if isinstance(error, Terminated) else ""
            return Interrupted(f"{who}{error}{way_out}", error.exit_code)
        for kind in OWN_ERRORS.values():
            if isinstance(error, kind):
                return kind(f"{who}{error}") if who else error
        if isinstance(error, BrokenPipeError) or not isinstance(error, Exception):
            return error
        if isinstance(error, OSError):
            return SystemFailed(f"{who}{in_words(error)}{kept}")
        if isinstance(error, MemoryError):
            return SystemFailed(f"{who}out of memory{kept}")
        said = SystemFailed(f"rank {self.rank}: {_with_kind(error)}{kept}")
        said.__cause__ = error
        return said

    def _told(self) -> BaseException | None:
        """What the first process that failed by itself has left, None where there is nothing. It
        says it itself, unless it is lost in the meantime.
        """
        if not self.store.check([WORDS]):
            return None
        told: dict[str, Any] = json.loads(self.store.get(WORDS))
        rank, kind, code = told["rank"], told["kind"], told["code"]
        text = f"rank {rank}: {told['text'] or kind}" if rank else told["text"] or kind
        if code > 128:
            error: Exception = Interrupted(text, code)
        else:
            error = OWN_ERRORS.get(kind, SystemFailed)(text)
        return self._unless_said(error, rank, FLOOR_SECONDS)

    def _missing(self, error: BaseException, kept: str) -> BaseException:
        """Says which processes are lost, or what one has left in the meantime. The first that
        misses one calls the roll for all, the lowest that is left speaks.
        """
        self.store.set(f"{FOUND}{self.rank}", "")
        end = time.monotonic() + ROLL_CALL_SECONDS
        if self.store.add(CALLS, 1) == 1:
            self.store.set(LOST, json.dumps(self._call_the_roll(end)))
        lost: list[int] = []
        while time.monotonic() < end + ROLL_CALL_SECONDS:
            if (told := self._told()) is not None:
                return told
            if self.store.check([LOST]):
                lost = json.loads(self.store.get(LOST))
                break
            time.sleep(0.05)
        if isinstance(error, Terminated) and not lost:
            stopped = Interrupted(f"{error}{kept}", error.exit_code)
            self._tell(stopped)
            return self._unless_said(stopped, 0, FIRST_SECONDS)
        names = [
            f"rank {rank} on {self.hosts[rank]}" + ", this process," * (rank == self.rank)
            for rank in lost
        ]
        left = [rank for rank in range(len(self.hosts)) if rank not in lost]
        said = SystemFailed(_reason(error, self.timeout, names) + kept)
        return self._unless_said(said, min(left, default=0), FLOOR_SECONDS)

    def _call_the_roll(self, end: float) -> list[int]:
        """The processes that show no sign of life until then."""
        before = {rank: self.store.add(f"{BEATS}{rank}", 0) for rank in range(len(self.hosts))}
        lost = set(before) - {self.rank}
        while lost and time.monotonic() < end and not self.store.check([WORDS]):
            time.sleep(0.05)
            lost = {rank for rank in lost if not self._lives(rank, before[rank])}
        return sorted(lost)

    def _lives(self, rank: int, beats: int) -> bool:
        """Whether a process has found out that one is lost, or goes on showing signs of life."""
        found = self.store.check([f"{FOUND}{rank}"])
        return found or self.store.add(f"{BEATS}{rank}", 0) > beats

    @contextlib.contextmanager
    def showing_life(self) -> Iterator[None]:
        """A context in which this process shows that it lives, also while it waits for others."""
        over = threading.Event()
        beating = threading.Thread(target=self._beat, args=(over,), daemon=True)
        beating.start()
        try:
            yield
        finally:
            over.set()
            beating.join(BEAT_SECONDS)  # not longer: the store may not answer

    def _beat(self, over: threading.Event) -> None:
        with contextlib.suppress(RuntimeError, OSError):  # the store has gone
            while not over.wait(BEAT_SECONDS):
                self._beats.add(f"{BEATS}{self.rank}", 1)


def is_broken_exchange(error: BaseException | None) -> bool:
    """Whether an exchange with another process has failed, as torch and gloo say it."""
    while error is not None:
        if isinstance(error, dist.DistError):
            return True
        if isinstance(error, RuntimeError) and re.search(f"gloo|NCCL|{GLOO}", str(error), re.I):
            return True
        error = error.__cause__
    return False


def first_line(error: BaseException) -> str:
    """What the error says first, without the place in torch's source."""
    line = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip().split("\n")[0])
    return line.split(". ")[0]


def _with_kind(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_unforeseen(error: BaseException | None) -> bool:
    """Whether a traceback is of use, beside the sentence that says what has come of it."""
    return isinstance(error, Exception) and not is_broken_exchange(error)


def _reason(error: BaseException, timeout: float, names: Sequence[str] = ()) -> str:
    """What has become of the processes called `names`, after an exchange with them has failed.

    One that shows no life and has closed its connection is gone. Of several, some may only be slow.
    """
    subject, several = " and ".join(names) or "another process of the run", len(names) > 1
    has = "have" if several else "has"
    while error.__cause__ is not None:
        error = error.__cause__
    if re.search(r"tim(ed|e) ?out", str(error), re.I):
        return f"{subject} {has} not answered for {timeout:g} seconds (distributed.timeout_seconds)"
    if isinstance(error, Terminated):  # nothing was asked of them
        return f"{subject} {'are' if several else 'is'} gone or {has} not answered (SIGTERM came)"
    if several:
        return f"{subject} are gone or have not answered ({first_line(error)})"
    return f"{subject} is gone ({first_line(error)})"
