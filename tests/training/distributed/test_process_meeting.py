"""Processes that are started again meet beside a store full of what their former selves left."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as dist

from dsr_kernels.training.meeting import private_part

PATIENCE = 30


class Late(threading.Timer):
    """`private_part` in a process that begins after so many seconds; `result` is what it gave."""

    def __init__(self, seconds: float, *given) -> None:
        super().__init__(seconds, self._meet, given)
        self.result = None
        self.start()

    def _meet(self, *given) -> None:
        self.result = private_part(*given)

    def part(self) -> dist.Store:
        self.join(PATIENCE)
        assert self.result is not None
        return self.result


@pytest.mark.parametrize("latest", range(3))
def test_processes_meet_where_nobody_has_been(latest):
    store = dist.HashStore()
    for meeting in range(4):  # the second and later ones find answers, questions and words
        others = [
            Late(0.2 if rank == latest else 0.0, store, rank, 3, PATIENCE) for rank in range(3)
        ]
        parts = [other.part() for other in others]
        assert not any(part.check(["place"]) for part in parts)
        parts[latest].set("place", str(meeting))
        assert all(part.get("place") == str(meeting).encode() for part in parts)


def test_a_process_that_is_alone_says_who_has_not_come():
    store = dist.HashStore()
    others = [Late(0.0, store, rank, 2, PATIENCE) for rank in range(2)]
    assert [other.part() for other in others]
    with pytest.raises(RuntimeError, match="rank 0 has not come"):
        private_part(store, 1, 2, 0.1)
    with pytest.raises(RuntimeError, match="rank 1 has not come"):
        private_part(store, 0, 2, 0.1)
