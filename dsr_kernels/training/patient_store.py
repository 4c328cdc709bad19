"""A store that is asked from another thread, so that one out of reach holds nobody up.

Where a link is cut, nobody is told: torch's client of a TCPStore waits for an answer as long as the
system goes on sending the question, a quarter of an hour, whatever its timeout. A thread that waits
so keeps all others out.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import torch.distributed as dist


class PatientStore:
    """What `store` answers. Raises OSError where it does not within so many seconds."""

    def __init__(self, store: dist.Store, seconds: float) -> None:
        self.store, self.seconds = store, seconds

    def add(self, key: str, number: int) -> int:
        return self._ask(self.store.add, key, number)

    def check(self, keys: list[str]) -> bool:
        return self._ask(self.store.check, keys)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        return self._ask(self.store.compare_set, key, expected, desired)

    def get(self, key: str) -> bytes:
        return self._ask(self.store.get, key)

    def set(self, key: str, value: str) -> None:
        self._ask(self.store.set, key, value)

    def _ask(self, call: Callable[..., Any], *given: Any) -> Any:
        answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put((call(*given), None))
            except BaseException as error:
                answers.put((None, error))

        threading.Thread(target=ask, daemon=True).start()
        try:
            answer, error = answers.get(timeout=self.seconds)
        except queue.Empty:
            raise OSError(f"torchrun's store has not answered for {self.seconds:g} s") from None
        if error is not None:
            raise error
        return answer
