"""The benchmark of layers in blocks: every block size is measured and stands in the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dsr_kernels.bench.problem import Layer

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def measure_blocks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import measure_blocks

    tiny = {"tiny": [Layer(16, 5, (3, 3), (6, 5), 1, (1, 1), 3)], "other": []}
    monkeypatch.setattr(measure_blocks, "FAMILIES", tiny)
    return measure_blocks


def test_every_block_size_is_measured(measure_blocks, monkeypatch, capsys, tmp_path):
    out = tmp_path / "new" / "blocks.json"
    monkeypatch.setattr(sys, "argv", ["", str(out), "--rounds", "1", "-k", "tiny"])
    measure_blocks.main()
    records = json.loads(out.read_text())["layers"]
    found = {(r["operation"], r["block_size"], r["sparsity"]) for r in records}
    operations = ("forward", "grad_input", "grad_weight")
    assert found == {(o, g, s) for o in operations for g in (1, 4, 8, 16) for s in (0.8, 0.9)}
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny |")]
    assert [row.split(" | ")[1] for row in rows] == ["1", "4", "8", "16"]
