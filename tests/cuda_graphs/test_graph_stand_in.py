"""The stand-in of CUDA graphs can fail where a graph of a GPU would."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from helpers import graph_stand_in
from helpers.graph_stand_in import Capture, Device, Graph, Stream


def capture(work: Any) -> Graph:
    graph = Graph()
    with Capture(graph, stream=Stream(), capture_error_mode="thread_local"):
        graph.result = work()
    return graph


def test_its_calls_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    real = inspect.signature(torch.cuda.graph.__init__).parameters
    assert {*inspect.signature(Capture.__init__).parameters} <= {*real}
    assert {"replay"} <= {*dir(torch.cuda.CUDAGraph)}
    assert {"wait_stream"} <= {*dir(torch.cuda.Stream)}


def test_a_capture_computes_nothing_and_a_replay_everything() -> None:
    x, total = torch.ones(3), torch.zeros(3)
    graph = capture(lambda: total.add_(x * 2).sum())
    assert total.tolist() == [0, 0, 0] and graph.result.isnan()
    x.fill_(2)
    graph.replay()
    graph.replay()
    assert total.tolist() == [8, 8, 8] and graph.result.item() == 24


def test_a_replay_reads_the_memory_of_the_capture() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    graph = capture(lambda: weight.detach() * 1)
    weight.data = torch.full((2,), 5.0)
    graph.replay()
    assert graph.result.tolist() == [1, 1]


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: x[x > 0],
    ],
)
def test_what_waits_for_the_device_loses_the_capture(waits: Any) -> None:
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        capture(lambda: waits(x))
    assert not [graph for graph in Graph.living if graph.calls]
    assert Device.current is not Device.default  # as torch leaves it


def test_memory_of_an_older_graph_is_noticed() -> None:
    first = capture(lambda: torch.ones(3) * 2)
    with pytest.raises(AssertionError, match="an older graph"):
        capture(lambda: torch.ones(3))
    held = first.result
    del first
    with pytest.raises(AssertionError, match="tensors of an older graph are held"):
        capture(lambda: torch.ones(3))
    del held
    capture(lambda: torch.ones(3))


def test_random_numbers_are_drawn_by_replays_alone() -> None:
    torch.manual_seed(0)
    expected = [torch.rand(2), torch.rand(2)]
    torch.manual_seed(0)
    graph = capture(lambda: torch.rand(2))
    for numbers in expected:
        graph.replay()
        assert torch.equal(graph.result, numbers)


def test_without_it_torch_is_as_it_was() -> None:
    with pytest.MonkeyPatch.context() as patch:
        graph_stand_in.use(patch)
        assert torch.cuda.graph is Capture
