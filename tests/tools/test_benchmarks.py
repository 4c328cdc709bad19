"""From a benchmark's full JSON to the kept one, the table of targets, and the pictures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsr_kernels.bench import timing
from dsr_kernels.bench.problem import OPERATIONS, Layer, Problem

ROOT = Path(__file__).parents[2]
TINY = Layer(6, 5, (3, 3), (9, 8), 1, (1, 1), 4)


def script(name, *args):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def entry(name, extra):
    stats = {"min": 0.001, "median": 0.002, "rounds": 3}
    return {"name": name, "stats": stats, "extra_info": extra}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A kept JSON of one tiny layer, made by the scripts themselves; times are set by hand."""
    folder = tmp_path_factory.mktemp("bench")
    problem, layers = Problem(TINY, (0.3, 0.6, 0.8, 0.9)), []
    for operation in OPERATIONS:
        for record in timing.compare(problem, operation, 1, 100.0):
            record["speed-up"] = 0.5 / (1 - record["sparsity"])  # even at 50 %
            record["ms"] |= {"ours": {"min": 2.0, "median": 3.0}}
            record["ms"] |= {"sparseprop": {"min": 20.0, "median": 30.0}}
            layers.append({"family": "WRN 3x3", **record})
    kinds = {"sparse conv": 1.0, "dense conv": 2.0, "batch norm": 1, "ReLU, add": 1, "rest": 1}
    step = {
        "model": "WRN-28-2",
        "batch": 4,
        "sparsity": 0.9,
        "speed-up": 0.9,
        "ms": {"dense NCHW": {"min": 9}, "ours": {"min": 10}},
        "ms by kind": {"ours": kinds, "dense": kinds},
        "held bytes": {"ours": 10, "dense": 100},
    }
    memory = {
        "model": "WRN-28-2",
        "batch": 4,
        "sparsity": 0.9,
        "allocator": "any",
        "peak bytes": {"ours": 120, "dense": 100},
    }
    yardsticks = {"peak GF/s": 100.0, "copy GB/s": 10.0, "isa": "avx2", "threads": 2}
    full = {
        "machine_info": {
            "cpu": {"brand_raw": "Made-up 3000", "count": 2},
            "processor": "",
            "python_version": "3",
            "system": "Linux",
            "yardsticks": yardsticks,
        },
        "datetime": "2020-01-01",
        "benchmarks": [
            entry("test_layer[a]", {"records": layers}),
            entry("test_training_step[a]", {"records": [step]}),
            entry("test_inference[a]", {"records": [step]}),
            entry("test_peak_memory_of_training[a]", {"records": [memory]}),
            entry("test_rewire_resnet50[a]", {"nnz": 7}),
        ],
    }
    (folder / "full.json").write_text(json.dumps(full))
    shown = script("summarize.py", folder / "full.json", folder / "kept.json")
    return folder / "kept.json", shown


def test_the_kept_json_holds_every_record(kept):
    data = json.loads(kept[0].read_text())
    assert data["machine"]["cpu"] == "Made-up 3000" and data["machine"]["peak GF/s"] == 100
    assert len(data["layers"]) == 4 * len(OPERATIONS)
    assert [len(data[s]) for s in ("training", "inference", "memory", "other")] == [1, 1, 1, 1]
    times = {"min": 1.0, "median": 2.0}
    assert data["other"] == [
        {"name": "test_rewire_resnet50[a]", "ms": times, "rounds": 3, "nnz": 7}
    ]


def test_the_tables_say_what_was_measured_and_what_was_not(kept):
    shown = kept[1]
    assert "| times as fast as dense | operation | 30 % | 60 % | 80 % | 90 % |" in shown
    for line in (
        "| WRN 3x3 | 80 % | 3.2x | 2.50x | no |",
        "| WRN 3x3 | 98 % | 16x | not measured |  |",
        "| linear | 90 % | 5x | not measured |  |",
        "| WRN-28-2 training step | 90 % | 2.8x | 0.90x | no |",
        "| forward + backward over sparseprop | 90 % | 7x | 10.00x | yes |",
        "| module over its operations | all | 0.9 | 1.00 | yes |",
        "@9x8: faster than dense from a sparsity of |  | <= 45% | 50% | no |",
    ):
        assert line in shown, line
    assert script("targets.py", kept[0]).strip() in shown


def test_the_pictures_are_drawn_from_it(kept, tmp_path):
    pytest.importorskip("matplotlib")
    script("plots.py", kept[0], tmp_path / "plots")
    names = ["inference", "memory", "roofline", "speed_up", "training_step"]
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("png", "svg")
    )
    for path in (tmp_path / "plots").iterdir():
        start = b"\x89PNG" if path.suffix == ".png" else b"<?xml"
        assert path.read_bytes().startswith(start) and path.stat().st_size > 5000


def test_pictures_that_have_no_data_are_left_out(tmp_path):
    pytest.importorskip("matplotlib")
    empty = {name: [] for name in ("layers", "training", "inference", "memory", "other")}
    (tmp_path / "kept.json").write_text(json.dumps({"machine": {}, "datetime": "", **empty}))
    script("plots.py", tmp_path / "kept.json", tmp_path / "plots")
    assert not list((tmp_path / "plots").iterdir())
