"""The benchmark of layers in blocks: every block size is measured and stands in the table."""

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
measure_blocks.main()
"""


def test_every_block_size_is_measured(tmp_path):
    out = tmp_path / "new" / "blocks.json"
    done = subprocess.run(
        [sys.executable, "-c", ON_A_TINY_LAYER, str(out), "--rounds", "1", "-k", "tiny"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records = json.loads(out.read_text())["layers"]
    found = {(r["operation"], r["block_size"], r["sparsity"]) for r in records}
    operations = ("forward", "grad_input", "grad_weight")
    assert found == {(o, g, s) for o in operations for g in (1, 4, 8, 16) for s in (0.8, 0.9)}
    assert {record["family"] for record in records} == {"tiny"}
    rows = [line for line in done.stdout.splitlines() if line.startswith("| tiny |")]
    assert [row.split(" | ")[1] for row in rows] == ["1", "4", "8", "16"]
