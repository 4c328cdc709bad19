from __future__ import annotations

import pytest
from helpers import graph_stand_in


@pytest.fixture(autouse=True)
def _graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs have graphs."""
    graph_stand_in.use(monkeypatch)
