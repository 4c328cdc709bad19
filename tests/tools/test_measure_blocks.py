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
    stored = record["weight bytes"]
    assert stored["ours, fused, blocks of 16"] < stored["ours, fused"] < stored["dense NCHW"]
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


PICTURE = """
import blocks_picture
from dsr_kernels.training.report import style
step = lambda ms: {"min": ms, "median": ms + 1}
names = ["dense bf16 NCHW", "ours bf16, fused", "ours bf16, fused, blocks of 16",
    "thin dense bf16 NCHW"]
kept = {"machine": {"cpu": "one", "threads": 2}, "steps": [{
    "model": "net", "batch": 8, "sparsity": 0.9,
    "milliseconds": dict(zip(names, map(step, (30, 20, 10, 40)))) | {"dense NCHW": step(5)},
    "weight bytes": dict(zip(names, (2**20, 2**18, 2**17, 2**19))),
}]}
row = lambda method, sparsity, accuracy, status="done": {
    "method": method, "sparsity": sparsity, "test_accuracy": accuracy, "status": status}
rows = [row("dense", "", "0.9"), row("dsr", "0.9", "0.8"), row("dsr", "0.9", "0.7"),
    row("dsr", "0.8", "0.6"), row("dsr_16", "0.9", "0.5"), row("dsr_16", "0.9", "", "failed"),
    row("dsr_8", "0.9", "0.4"), row("thin_dense", "0.9", "0.3")]
with style.drawing("a test"):
    for axes in blocks_picture.draw(kept, rows).axes:
        print([[round(float(v), 3) for v in line.get_xydata().flatten()] for line in axes.lines])
"""


def test_the_picture_has_every_seed_of_what_was_timed() -> None:
    """A method that was not timed, another sparsity and a failed run stay out."""
    done = subprocess.run(
        [sys.executable, "-c", PICTURE],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    by_time, by_bytes = (json.loads(line) for line in done.stdout.splitlines())
    assert by_time == [
        *([30, 90], [30, 90], [20, 80, 20, 70], [20, 75], [10, 50], [10, 50], [40, 30], [40, 30])
    ]
    assert [dots[0] for dots in by_bytes] == [1, 1, 0.25, 0.25, 0.125, 0.125, 0.5, 0.5]
