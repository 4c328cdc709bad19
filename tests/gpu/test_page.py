"""The example of docs/cuda.md."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from .device import DEVICE, ON_CUDA, cuda_only

pytestmark = pytest.mark.gpu
PAGE = Path(__file__).parents[2] / "docs/cuda.md"
SMALLER = {"torch.zeros(128": "torch.zeros(4", "every=100": "every=2", '"cuda"': f'"{DEVICE.type}"'}
CAPTURE = "        graph, replayed = capture()\n"
BATCHES = 5  # two rewires, and captures after them


def example() -> str:
    (source,) = re.findall(r"<!-- example -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for long, short in SMALLER.items():
        assert long in source
        source = source.replace(long, short)
    assert CAPTURE in source
    return source


def run(source: str) -> tuple[list[float], dict]:
    """(the loss of each step, what the example's names mean at the end)."""

    def loader() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(1)
        for _ in range(BATCHES):
            images = torch.randn(4, 3, 32, 32, generator=generator)
            yield images, torch.randint(0, 10, (4,), generator=generator)
            losses.append(names["loss"].item())

    losses: list[float] = []
    names = {"loader": loader()}
    torch.manual_seed(0)
    exec(compile(source, str(PAGE), "exec"), names)
    return losses, names


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], dict]:
    """The example without its captures: each step is an eager one."""
    if not ON_CUDA:
        stream = SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    return run(example().replace(CAPTURE, ""))


def test_the_example_trains_and_rewires(eager: tuple[list[float], dict]) -> None:
    losses, names = eager
    assert len(set(losses)) == BATCHES and all(0 < loss < 100 for loss in losses)
    assert (names["rewirer"].iteration, names["rewirer"].rewires) == (BATCHES, 2)


@cuda_only
def test_the_example_with_its_graphs_computes_the_same(eager: tuple[list[float], dict]) -> None:
    losses, names = run(example())
    assert names["graph"] is not None
    torch.testing.assert_close(losses, eager[0], rtol=1e-3, atol=1e-3)
