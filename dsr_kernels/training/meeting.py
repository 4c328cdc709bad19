"""How the processes that torchrun has started find a part of its store that is theirs alone.

After a failure torchrun starts processes again beside the same store. What former ones have left
there looks like an answer: a process would wait at the address of one that is dead.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import torch.distributed as dist

LONGEST_PAUSE = 0.5  # seconds between two looks into the store


def private_part(store: dist.Store, rank: int, size: int, timeout: float) -> dist.Store:
    """The same part of `store` in all `size` processes, in which nobody has been before.

    The first process asks with a word of its own, and takes only answers to that. Each other
    answers with one of its own, and goes on once the first has repeated it. Raises RuntimeError
    where that takes longer than so many seconds.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + timeout
    if rank == 0:
        store.set("question", own)
        for other in range(1, size):
            pauses = _pauses(end, f"rank {other} has not come")
            while (answer := _read(store, f"answer{other}").partition(" "))[0] != own:
                next(pauses)
            store.set(f"heard {answer[2]}", own)
        return dist.PrefixStore(own, store)
    pauses = _pauses(end, "rank 0 has not come")
    while not (question := _read(store, f"heard {own}")):
        store.set(f"answer{rank}", f"{_read(store, 'question')} {own}")
        next(pauses)
    return dist.PrefixStore(question, store)


def _read(store: dist.Store, key: str) -> str:
    """What the store has under the key; empty where there is nothing."""
    return store.get(key).decode() if store.check([key]) else ""


def _pauses(end: float, why: str) -> Iterator[None]:
    """Each is longer than the one before, as hundreds of processes may ask one store."""
    seconds = 0.01
    while time.monotonic() <= end:
        time.sleep(seconds)
        seconds = min(2 * seconds, LONGEST_PAUSE)
        yield
    raise RuntimeError(why)
