"""Ctrl-C and SIGTERM as a request to stop at the next safe point; a second one ends the process at
once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


class StopRequest:
    """While active, `signum` holds the signal that arrived, or None."""

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
        # os.write: the signal may have come in the middle of a print, which must not be entered
        # again.
        notice = b"\nstopping: saving a checkpoint (again to quit at once)\n"
        os.write(sys.__stderr__.fileno(), notice)

    @property
    def exit_code(self) -> int:
        return 128 + (self.signum or 0)
