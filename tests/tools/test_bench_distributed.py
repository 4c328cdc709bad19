"""The benchmark of several processes: what it counts, and what its tables say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SMALL = ("--small", "--rounds", "1", "--processes", "2")


def test_bytes_are_counted_and_every_table_is_made(tmp_path):
    out = tmp_path / "new" / "distributed.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "bench_distributed.py"), str(out), *SMALL],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kept = json.loads(out.read_text())
    dense, ours = kept["steps"]
    assert (dense["side"], ours["side"]) == ("dense", "ours")
    assert ours["numbers"] < 0.12 * dense["numbers"]
    for record in (dense, ours):
        for name, width in (("fp32", 4), ("bf16 hook", 2)):
            sent = record["sent"][name]
            assert sent["bytes"] == sum(sent["buckets"]) == width * record["numbers"]
            assert len(sent["buckets"]) > 2 and 0.5 < sent["share within backward"] < 1
            assert 0 <= sent["share averaged within backward"] <= sent["share within backward"]
            if sent["bytes on lo"] is not None:  # of two processes each sends all that it has once
                assert sent["bytes on lo"] > 0.9 * sent["bytes"]
        assert all(times["min"] > 0 for times in record["ms"].values())
    (rewire,) = kept["rewires"]
    assert list(rewire["ms"]) == ["rewire", "first step after", "second", "third"]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| 2, ours | ")]
    assert len(rows) == 3
    assert f"| {ours['numbers']:,} | {ours['sent']['fp32']['bytes'] / 1e3:.0f} | " in rows[1]


def record(side: str, ddp: float) -> dict:
    names = ("without communication", "DDP", "DDP, bf16 hook", "all-reduce alone")
    ms = dict(zip((*names, "all-reduce after"), (10, ddp, 30, 4, 50), strict=True))
    sent = {"bytes": 4000, "buckets": [3000, 1000], "bytes on lo": 6100}
    shares = {"share within backward": 0.75, "share averaged within backward": 0.5}
    return {
        "processes": 4,
        "side": side,
        "numbers": 1000,
        "ms": {name: {"min": taken, "median": taken + 1} for name, taken in ms.items()},
        "sent": {"fp32": sent | shares, "bf16 hook": sent | {"bytes": 2000}},
    }


def test_what_the_tables_say(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from distributed_table import NOTHING, tables

    parts = ("rewire", "first step after", "second", "third")
    ms = {part: {"min": t, "median": t} for part, t in zip(parts, (5, 30, 22, 20), strict=True)}
    kept = {
        "machine": {"cpu": "one", "cores": 2, "torch": "2"},
        "steps": [record("dense", 16), record("ours", 15)],
        "rewires": [{"processes": 4, "ms": ms}],
    }
    lines = tables([kept]).splitlines()
    times, sent, rewires = (line for line in lines if line.startswith("| 4, ours | "))
    assert times.endswith("| 1.0 (0.50 of dense's) |")  # 15 - 10 - 4 of 16 - 10 - 4
    assert sent == "| 4, ours | 1,000 | 4 | 2 | 6 | 6 | 2 | 75 % | 50 % |"
    assert rewires.endswith("| 17.0 |")  # 5 + 10 + 2
    kept["steps"] = [record("dense", 13), record("ours", 15)]
    assert "of dense's" not in tables([kept])  # which had none
    assert tables([]) == NOTHING


@pytest.mark.parametrize("option", ["--rounds", "--processes"])
def test_numbers_below_one_are_refused(option, tmp_path):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "bench_distributed.py"), str(tmp_path), option, "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and f"{option}: expected at least 1, got 0" in done.stderr
