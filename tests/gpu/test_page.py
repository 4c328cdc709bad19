"""The example of docs/cuda.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dsr_kernels.cuda import replayer

from .device import DEVICE, cuda_only

pytestmark = pytest.mark.gpu
PAGE = Path(__file__).parents[2] / "docs/cuda.md"
SMALLER = {"every=100": "every=3", '"cuda"': f'"{DEVICE.type}"'}
BATCHES = 7  # two rewires, and captures after them


def example() -> str:
    (source,) = re.findall(r"<!-- example -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for long, short in SMALLER.items():
        assert long in source
        source = source.replace(long, short)
    return source


def run() -> tuple[list[float], dict]:
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
    exec(compile(example(), str(PAGE), "exec"), names)
    return losses, names


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], dict]:
    """The example with eager steps only."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replayer, "GPU", "none")
        return run()


def test_the_example_trains_and_rewires(
    eager: tuple[list[float], dict], capsys: pytest.CaptureFixture[str]
) -> None:
    losses, names = eager
    assert len(set(losses)) == BATCHES and all(0 < loss < 100 for loss in losses)
    assert (names["rewirer"].iteration, names["rewirer"].rewires) == (BATCHES, 2)
    assert not names["step"].is_replaying


@cuda_only
def test_the_example_with_its_graphs_computes_the_same(eager: tuple[list[float], dict]) -> None:
    losses, names = run()
    assert names["step"].why_eager is None
    assert losses == eager[0]
