"""Ctrl-C and SIGTERM ask for a stop at the next safe point; one more Ctrl-C ends it all at once.

Before training and after it, SIGTERM ends the process with a sentence: `EarlySigterm`. A process of
several that is about to end says so first: `put_off_sigterm`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

from dsr_kernels.errors import Terminated


class EarlySigterm:
    """A context in which SIGTERM raises Terminated, but where a StopRequest takes it.

    It does so once. A cluster sends it to all processes, and torchrun then to its own again.
    """

    arrived = False

    def __enter__(self) -> EarlySigterm:
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if signal.getsignal(signal.SIGTERM) == self._on_signal:  # else it is put off
            signal.signal(signal.SIGTERM, self._former)

    def _on_signal(self, _signum: int, _frame: object) -> None:
        if not self.arrived:
            self.arrived = True
            raise Terminated("stopped by SIGTERM")


class StopRequest:
    """A context in which `signum` is the signal that has arrived, None before one has.

    doing: what it does before it stops, in words. notice: whether this process says so.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, doing: str = "saving a checkpoint", notice: bool = True) -> None:
        self.doing, self.notice = doing, notice
        self.signum: int | None = None
        self._former: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        # Python allows handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._former = {s: signal.signal(s, self._on_signal) for s in self.SIGNALS}
            early = getattr(self._former[signal.SIGTERM], "__self__", None)
            if isinstance(early, EarlySigterm) and early.arrived:
                self.signum = signal.SIGTERM  # what was raised has been caught, as in a `__del__`
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._former.items():
            signal.signal(signum, handler)

    def _on_signal(self, signum: int, _frame: object) -> None:
        if self.signum is not None:
            if signum == signal.SIGTERM:  # a cluster sends it to all processes, and then again
                return
            os._exit(128 + signum)
        self.signum = signum
        if not self.notice:
            return
        # The signal may have come in the middle of a print, which cannot be entered again.
        notice = f"\nstopping: {self.doing} (Ctrl-C once more quits at once)\n"
        if signum == signal.SIGTERM:
            notice = f"\nstopping after SIGTERM: {self.doing}\n"
        os.write(sys.__stderr__.fileno(), notice.encode())

    @property
    def exit_code(self) -> int:
        return 128 + (self.signum or 0)

    def asked(self) -> list[float]:
        """1 for the signal that has arrived, 0 for the others, in the order of SIGNALS."""
        return [float(signum == self.signum) for signum in self.SIGNALS]

    @classmethod
    def code_of(cls, asked: list[float]) -> int:
        """The exit code of a run, from what its processes have `asked` for, summed."""
        return 128 + next(s for s, count in zip(cls.SIGNALS, asked, strict=True) if count)


def put_off_sigterm(seconds: float) -> None:
    """For so many seconds from now a SIGTERM waits until they are over."""
    if threading.current_thread() is not threading.main_thread():
        return
    former = signal.getsignal(signal.SIGTERM)
    end = time.monotonic() + seconds

    def later(_signum: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if former is None else former)
        again = (os.getpid(), signal.SIGTERM)
        timer = threading.Timer(max(0.0, end - time.monotonic()), os.kill, again)
        timer.daemon = True
        timer.start()

    with contextlib.suppress(Terminated):  # of one that has come just now
        signal.signal(signal.SIGTERM, later)
        return
    signal.signal(signal.SIGTERM, later)
