"""The benchmark of blocks: every block size is measured and stands in the tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# In a process of its own: benchmarks have modules of the names of tests'.
ON_A_TINY_LAYER = """
import measure_blocks
from dsr_kernels.bench.problem import Layer
tiny = [Layer(16, 5, (3, 3), (6, 5), 1, (1, 1), 3)]
measure_blocks.FAMILIES = {"tiny": tiny, "other": tiny}
measure_blocks.WRN = measure_blocks.WRN._replace(batch=4, size=8)
measure_blocks.main()
"""


def measured(out: Path, *options: str) -> tuple[dict, str]:
    """What it kept and printed."""
    done = subprocess.run(
        [sys.executable, "-c", ON_A_TINY_LAYER, str(out), "--rounds", "1", *options],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_steps_are_measured(tmp_path):
    kept, printed = measured(tmp_path / "blocks.json", "-k", "WRN-28-2 step", "--no-compile")
    assert kept["layers"] == []
    (record,) = kept["steps"]
    taken = record["milliseconds"]
    assert {"dense NCHW", "dense channels_last", "ours, fused", "ours, fused, blocks of 16"} <= {
        *taken
    }
    assert all(times["min"] > 0 for times in taken.values())
    (row,) = [
        line
        for line in printed.splitlines()
        if line.startswith("| WRN-28-2 at 90%") and "fp32" in line
    ]
    fastest = min(taken["dense NCHW"]["min"], taken["dense channels_last"]["min"])
    unstructured, blocks = (
        fastest / taken[f"ours, fused{of}"]["min"] for of in ("", ", blocks of 16")
    )
    assert f"{unstructured:.2f}" in row and f"{blocks:.2f}" in row


def test_every_block_size_is_measured(tmp_path):
    kept, printed = measured(tmp_path / "new" / "blocks.json", "-k", "tiny")
    records = kept["layers"]
    found = {(r["operation"], r["block_size"], r["sparsity"]) for r in records}
    operations = ("forward", "grad_input", "grad_weight")
    assert found == {(o, g, s) for o in operations for g in (1, 4, 8, 16) for s in (0.8, 0.9)}
    assert {record["family"] for record in records} == {"tiny"}
    rows = [line for line in printed.splitlines() if line.startswith("| tiny |")]
    assert [row.split(" | ")[1] for row in rows] == ["1", "4", "8", "16"]
