"""Threads that use a layer while another one changes it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dsr_kernels.nn import SparseLinear
from dsr_kernels.nn.changing import changing
from dsr_kernels.rewiring import SET

HELPER = Path(__file__).parents[1] / "helpers" / "threaded_passes.py"
X = torch.ones(2, 8)


@pytest.mark.parametrize(
    "change", ["nnz", "same_nnz", "assign", "replace", "replace_same", "rewire"]
)
def test_a_pass_beside_a_change_reads_one_weight(change: str) -> None:
    # In a process of its own, which a pass that reads freed memory would end.
    command = [sys.executable, "-X", "faulthandler", str(HELPER), change]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]


def in_another_thread(run: Callable[[], object]) -> BaseException | None:
    raised: list[BaseException] = []

    def catch() -> None:
        try:
            run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=catch)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_two_threads_do_not_change_a_layer_at_once() -> None:
    layer = SparseLinear(8, 8, nnz=20)
    other = SparseLinear(8, 8, nnz=30)
    first, second = (
        SET(layer, torch.optim.SGD(layer.parameters(), lr=0.1), every=1) for _ in range(2)
    )
    pattern = other.crow_indices, other.col_indices, other.weight_values.detach()
    with changing([layer]):
        for change in (
            second.rewire,
            lambda: layer.load_state_dict(other.state_dict()),
            lambda: layer.replace_topology(*pattern),
        ):
            error = in_another_thread(change)
            assert isinstance(error, RuntimeError) and "another thread rewires" in str(error)
        first.rewire()  # this thread may
        assert in_another_thread(lambda: layer(X)) is None
    assert layer.nnz == 20
    assert in_another_thread(second.rewire) is None


def test_a_change_that_fails_lets_others_follow() -> None:
    layer = SparseLinear(8, 8, nnz=20)
    with pytest.raises(RuntimeError, match="expected a weight of shape"):
        layer.load_state_dict(SparseLinear(8, 4, nnz=5).state_dict())
    assert in_another_thread(lambda: layer.load_state_dict(layer.state_dict())) is None


def test_a_graph_from_before_a_change_is_refused_in_its_own_thread() -> None:
    layer = SparseLinear(8, 8, nnz=20)
    y = layer(X)
    other = SparseLinear(8, 8, nnz=20)
    assert in_another_thread(lambda: layer.load_state_dict(other.state_dict())) is None
    with pytest.raises(RuntimeError, match="between forward and backward"):
        y.sum().backward()
