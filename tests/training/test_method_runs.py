"""Every method of `dsr train`: a run that was stopped and continued is the uninterrupted one."""

from __future__ import annotations

import pytest
from helpers.small_runs import QUIET, artefacts, interrupt_at, rows, train

from dsr_kernels.cli import main
from dsr_kernels.rewiring import METHODS
from dsr_kernels.training.run.checkpoint import Checkpoints

RUNS = {name: [] for name in METHODS} | {
    "dsr": ["rewiring.threshold=exact"],
    "dsr of kernels": ["model.granularity=kernel", "rewiring.threshold=exact"],
    "set": ["rewiring.fraction=0.2"],
    "rigl": ["optimizer.name=adam", "optimizer.lr=0.01"],
    "deepr": [
        "rewiring.eta=0.5",
        "rewiring.l1=1e-3",
        "rewiring.temperature=1e-4",
        "rewiring.final_temperature=1e-8",
    ],
    "gmp": ["rewiring.scope=global", "rewiring.density_schedule=exponential"],
    "static": ["model.distribution=erk"],
    "dense": [],
    "thin_dense": [],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_continued_run_equals_the_uninterrupted_one(name, tmp_path):
    """The checkpoint lies between iterations 14 and 15, which a rewire follows."""
    method, kind = name.split()[0], "wrn" if "kernels" in name else "lenet"
    changes = [f"method={method}", "rewiring.record_exploration=true", *RUNS[name]]
    assert train(tmp_path / "whole", *changes, kind=kind) == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 14 if kind == "lenet" else 8)
        assert train(tmp_path / "cut", *changes, kind=kind) == 130
    assert main(["train", "--resume", str(tmp_path / "cut"), *QUIET]) == 0
    assert artefacts(tmp_path / "cut") == artefacts(tmp_path / "whole")
    seen, other = (explored(tmp_path / run) for run in ("whole", "cut"))
    assert seen == other
    if method in METHODS:
        counts = [int(row["nonzeros"]) for row in rows(tmp_path / "whole", "rewires")]
        shrinks = METHODS[method].SHRINKS
        assert (seen > counts[0]) == (not shrinks and method != "static")
        assert (counts[-1] < counts[0]) == shrinks


@pytest.mark.parametrize("stop_epoch, last", [("0", 36), ("1.75", 21)])
def test_deepr_records_what_happened_since_its_last_report(stop_epoch, last, tmp_path):
    """Its reports come every 100 iterations, training takes 36: one is made at its end, or at
    stop_epoch. The run that is interrupted after the last iteration records it no second time."""
    changes = [
        "method=deepr",
        "rewiring.record_exploration=true",
        *RUNS["deepr"],
        f"rewiring.stop_epoch={stop_epoch}",
    ]
    assert train(tmp_path / "whole", *changes) == 0
    first, row = rows(tmp_path / "whole", "rewires")
    assert (row["iteration"], float(row["epoch"])) == (str(last), last / 12)
    assert int(row["pruned"]) == int(row["grown"]) > 0
    positions = int(first["nonzeros"]) / float(first["exploration"])
    assert round(float(row["exploration"]) * positions) == explored(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 36)
        assert train(tmp_path / "cut", *changes) == 130
    assert main(["train", "--resume", str(tmp_path / "cut"), *QUIET]) == 0
    assert artefacts(tmp_path / "cut") == artefacts(tmp_path / "whole")


def explored(run) -> int:
    """How many positions have ever been active."""
    bitmaps = Checkpoints(run / "checkpoints").load_latest()[1]["exploration"] or {}
    return sum(int(byte).bit_count() for bitmap in bitmaps.values() for byte in bitmap)
