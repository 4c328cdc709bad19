"""A child of os.fork computes, whatever lock another thread of its parent had."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from dsr_kernels import SparseLinear
from dsr_kernels.backends import locks
from dsr_kernels.backends.buffers import buffers
from dsr_kernels.backends.held import exchange
from dsr_kernels.backends.patterns import patterns

# Later Pythons warn of any fork beside threads.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
LOCKS = {"exchange": exchange, "patterns": patterns._lock, "buffers": buffers._lock}


@contextlib.contextmanager
def had_by_another_thread(lock) -> Iterator[None]:
    begun, end = threading.Event(), threading.Event()

    def have() -> None:
        with lock:
            begun.set()
            end.wait()

    thread = threading.Thread(target=have)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        end.set()
        thread.join()


def status_of_child(compute: Callable[[], bool], seconds: float = 60) -> int | str:
    """The exit code of a child: 0 where `compute` returned True; or "it hangs"."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            torch.set_num_threads(1)  # the parent's OpenMP threads are not in the child
            code = 0 if compute() else 1
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "it hangs"


def step(layer: SparseLinear, x: torch.Tensor, expected: torch.Tensor) -> bool:
    """A pass on the pattern that is known, a new one, and large results, which take a buffer."""
    same = torch.equal(layer(x), expected)
    other = SparseLinear(8, 4, nnz=9)
    other(x.clone().requires_grad_()).sum().backward()
    owner = object.__new__(type("Owner", (), {}))
    made = buffers.empty(owner, (1 << 19,), (1,), torch.float32)
    return same and made.numel() == 1 << 19


@pytest.mark.parametrize("name", LOCKS)
def test_a_child_computes_though_another_thread_had_a_lock(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    layer, x = SparseLinear(8, 4, nnz=9), torch.randn(3, 8)
    expected = layer(x)
    with had_by_another_thread(LOCKS[name]):
        assert status_of_child(lambda: step(layer, x, expected)) == 0
    assert torch.equal(layer(x), expected)


def test_a_fork_waits_until_a_change_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the child would have new values at old positions."""
    monkeypatch.setattr(locks, "PATIENCE", 60)
    layer, x = SparseLinear(8, 1, bias=False, nnz=2), torch.arange(8.0)[None]
    crow = torch.tensor([0, 2], dtype=torch.int32)
    layer.replace_topology(crow, torch.tensor([0, 1], dtype=torch.int32), torch.ones(2))
    forks, halfway = threading.Event(), threading.Event()

    def change() -> None:
        with exchange:
            layer._exchange_values(torch.full((2, 1), 10.0))
            halfway.set()
            forks.wait()
            layer._exchange_pattern(crow.clone(), torch.tensor([6, 7], dtype=torch.int32))

    thread = threading.Thread(target=change)
    thread.start()
    halfway.wait()
    threading.Timer(0.05, forks.set).start()
    assert status_of_child(lambda: layer(x).item() == 130) == 0
    thread.join()


def test_every_lock_is_one_of_these() -> None:
    known = [lock for _, lock in locks._all]
    assert all(lock in known for lock in LOCKS.values())
    assert [rank for rank, _ in locks._all] == sorted(rank for rank, _ in locks._all)
