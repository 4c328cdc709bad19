"""The Python of the how-to pages, of the cards and of the first page runs, page by page."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dsr_kernels
from dsr_kernels.rewiring import DSR

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs/howto", "docs/methods")
PAGES = ["docs/index.md", *(f"{f}/{p.name}" for f in FOLDERS for p in (ROOT / f).glob("*.md"))]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)


def given(path: Path) -> dict[str, Any]:
    """What the pages take for granted: a model, data, and what a reader has built of them."""
    torch.manual_seed(0)
    my_model = nn.Sequential()
    my_model.add_module("conv1", nn.Conv2d(3, 8, 3, padding=1))
    my_model.add_module("conv2", nn.Conv2d(8, 8, 3, padding=1))
    my_model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    my_model.add_module("flat", nn.Flatten())
    my_model.add_module("head", nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10)))
    loader = [(torch.randn(4, 3, 8, 8), torch.randint(10, (4,))) for _ in range(3)]
    model = dsr_kernels.sparsify(my_model, sparsity=0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    names = {"my_model": my_model, "loader": loader, "images": loader[0][0], "path": path / "file"}
    built = {"model": model, "optimizer": optimizer, "rewirer": DSR(model, optimizer)}
    return {"torch": torch, "dsr_kernels": dsr_kernels, "DSR": DSR, **names, **built}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_the_code_runs(page, tmp_path, monkeypatch, request):
    names = given(tmp_path)
    if "distributed" in "".join(blocks(page)):
        process_group(request, tmp_path)
    # A compiler that runs what it is given: how the layers compile, tests/nn knows.
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m, **o: whole(m, backend="eager", **o))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for number, source in enumerate(blocks(page), 1):
            source = source.replace("every=100", "every=2").replace("20_000, sch", "20, sch")
            exec(compile(source, f"{page}, block {number}", "exec"), names)
    if "every=100" in "".join(blocks(page)) and "rewirer.step()" in "".join(blocks(page)):
        assert names["rewirer"].rewires >= 1


def process_group(request: pytest.FixtureRequest, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(folder / "store"), 1), rank=0, world_size=1
    )
    request.addfinalizer(torch.distributed.destroy_process_group)


def test_pages_are_found():
    assert sum(bool(blocks(page)) for page in PAGES) >= 17
