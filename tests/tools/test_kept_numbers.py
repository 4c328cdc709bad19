"""The tables of the pages, and numbers in README.md's prose, against the kept JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README, LIMITS = "README.md", "docs/limits.md"
RESULTS = ROOT / "benchmarks/results"
CPU, AVX2, GPU = (
    RESULTS / f"{name}.json" for name in ("xeon-avx512-2cores", "xeon-avx512-2cores-avx2", "h200")
)
MODELS = sorted(RESULTS.glob("*-models.json"))
BLOCKS = sorted(RESULTS.glob("*-blocks.json"))
HOST = sorted(RESULTS.glob("*-host.json"))
DISTRIBUTED = sorted(RESULTS.glob("*-distributed.json"))
README_MODELS = RESULTS / "xeon-amx-2cores-models.json"  # as in Makefile


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("script", "results", "page", "first", "last"),
    [
        (
            "readme_table.py",
            (CPU, GPU, README_MODELS),
            README,
            "<!-- measured: made by `make readme-table` -->",
            "<!-- end of measured -->",
        ),
        (
            "cpu_tables.py",
            (CPU, AVX2),
            "docs/measured.md",
            "<!-- measured on a CPU: made by `make cpu-tables` -->",
            "<!-- end of CPU -->",
        ),
        (
            "distributed_table.py",
            DISTRIBUTED,
            "docs/distributed.md",
            "<!-- measured: made by `make distributed-table` -->",
            "<!-- end of measured -->",
        ),
        (
            "distributed_model.py",
            (GPU,),
            "docs/distributed.md",
            "<!-- modelled: made by `make distributed-model` -->",
            "<!-- end of modelled -->",
        ),
        (
            "blocks_table.py",
            BLOCKS,
            "docs/performance.md",
            "<!-- blocks: made by `make blocks-table` -->",
            "<!-- end of blocks -->",
        ),
        (
            "host_table.py",
            HOST,
            "docs/performance.md",
            "<!-- host: made by `make host-table` -->",
            "<!-- end of host -->",
        ),
        (
            "model_tables.py",
            MODELS,
            "docs/performance.md",
            "<!-- whole models: made by `make model-tables` -->",
            "<!-- end of whole models -->",
        ),
    ],
)
def test_the_tables_say_what_the_kept_json_says(tmp_path, script, results, page, first, last):
    text = read(page)
    before, rest = text.split(first)
    emptied = tmp_path / "page.md"
    emptied.write_text(before + first + last + rest.split(last)[1], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *map(str, results), str(emptied)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    renewed = emptied.read_text(encoding="utf-8")
    assert renewed == text, f"the target named in {first} renews it"


def test_what_is_said_of_memory_and_of_the_break_even(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from targets import break_even

    kept = json.loads(CPU.read_text())
    (step,) = (s for s in kept["training"] if (s["model"], s["sparsity"]) == ("WRN-28-2", 0.9))
    held = {name: count / 1e6 for name, count in step["held bytes"].items()}
    assert f"take {held['ours']:.1f} MB instead of {held['dense']:.1f}." in read(README)
    layers = dict.fromkeys(r["layer"] for r in kept["layers"] if r["family"] == "WRN 3x3")
    points = [100 * break_even(kept["layers"], layer) for layer in layers]
    assert f"Below {min(points):.0f}-{max(points):.0f} % sparsity" in read(LIMITS)
