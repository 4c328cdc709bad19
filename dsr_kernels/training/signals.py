"""Ctrl-C and SIGTERM ask for a stop at the next safe point; a second one ends it all at once."""

from __future__ import annotations

import os
import signal
import sys
import threading


class StopRequest:
    """A context in which `signum` is the signal that has arrived, None before one has."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signum: int | None = None
        self._former: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        # Python allows handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._former = {s: signal.signal(s, self._on_signal) for s in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._former.items():
            signal.signal(signum, handler)

    def _on_signal(self, signum: int, _frame: object) -> None:
        if self.signum is not None:
            os._exit(128 + signum)
        self.signum = signum
        # The signal may have come in the middle of a print, which cannot be entered again.
        notice = b"\nstopping: saving a checkpoint (once more quits at once)\n"
        os.write(sys.__stderr__.fileno(), notice)

    @property
    def exit_code(self) -> int:
        return 128 + (self.signum or 0)
