"""The exploration rate against sets of positions, and in the records of a run."""

import math

import pytest
import torch
from helpers.small_runs import QUIET, artefacts, interrupt_at, rows, train
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr_kernels.cli import main
from dsr_kernels.nn import SparseConv2d, SparseLinear
from dsr_kernels.rewiring import DSR
from dsr_kernels.rewiring.exploration import Exploration
from dsr_kernels.topology import Topology
from dsr_kernels.training.run.checkpoint import Checkpoints

SHAPES = [(5, 7), (4, 3, 3, 3)]
PATTERNS = st.tuples(*(st.sets(st.integers(0, math.prod(shape) - 1)) for shape in SHAPES))


def two_layers() -> torch.nn.Sequential:
    return torch.nn.Sequential(SparseLinear(7, 5, nnz=1), SparseConv2d(3, 4, 3, nnz=1))


@settings(max_examples=60, deadline=None)
@given(st.lists(PATTERNS, min_size=1, max_size=6), st.data())
def test_the_rate_is_that_of_sets(patterns, data):
    model = two_layers()
    exploration = Exploration(model)
    seen = [set(layer.topology.linear_positions().tolist()) for layer in model]
    reload_after = data.draw(st.integers(0, len(patterns) - 1))
    for step, pattern in enumerate(patterns):
        for layer, positions, ever in zip(model, pattern, seen, strict=True):
            new = Topology.from_positions(
                layer.weight_shape, torch.tensor(sorted(positions), dtype=torch.int64)
            )
            values = torch.ones(new.nnz)
            layer.replace_topology(new.crow_indices, new.col_indices, values)
            ever |= positions
        exploration.update()
        total = sum(math.prod(shape) for shape in SHAPES)
        assert exploration.rate == sum(map(len, seen)) / total
        for bitmap, ever in zip(exploration.state_dict().values(), seen, strict=True):
            bits = [i for i in range(8 * len(bitmap)) if bitmap[i // 8] >> (i % 8) & 1]
            assert set(bits) == ever
        if step == reload_after:
            state, exploration = exploration.state_dict(), Exploration(model)
            exploration.load_state_dict(state)


def test_a_bit_for_each_position_and_nothing_more():
    state = Exploration(two_layers()).state_dict()
    assert [(b.dtype, b.numel()) for b in state.values()] == [(torch.uint8, 5), (torch.uint8, 14)]


def test_bitmaps_of_other_layers_are_refused():
    exploration = Exploration(two_layers())
    with pytest.raises(ValueError, match="expected bitmaps"):
        exploration.load_state_dict({"0": torch.zeros(5, dtype=torch.uint8)})


def test_real_rewires_explore_what_they_grow():
    torch.manual_seed(3)
    model = torch.nn.Sequential(SparseLinear(40, 30, nnz=120), SparseLinear(30, 20, nnz=60))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewirer = DSR(model, optimizer, prune_fraction=0.3, every=1, threshold="exact")
    exploration, seen = Exploration(model), set()
    for _ in range(8):
        for name, layer in model.named_children():
            seen |= {(name, p) for p in layer.topology.linear_positions().tolist()}
        exploration.update()
        assert exploration.rate == len(seen) / (40 * 30 + 30 * 20)
        for layer in model:
            layer.weight_values.data.normal_()
        rewirer.step()
    assert len(seen) > 2 * 180


def test_what_is_active_between_two_records_counts_too(tmp_path, monkeypatch):
    """DeepR rewires after every iteration and reports now and then."""
    real = DSR.step

    def step(self) -> None:
        real(self)

    monkeypatch.setattr(DSR, "step", step)
    on = ("rewiring.record_exploration=true", "training.epochs=1")
    assert train(tmp_path / "silent", *on) == 0
    monkeypatch.undo()
    assert train(tmp_path / "told", *on) == 0
    assert len(rows(tmp_path / "silent", "rewires")) == 1 < len(rows(tmp_path / "told", "rewires"))
    silent, told = (
        Checkpoints(tmp_path / name / "checkpoints").load_latest()[1]["exploration"]
        for name in ("silent", "told")
    )
    assert all(torch.equal(silent[key], told[key]) for key in told)


def test_a_run_records_it_only_when_asked_and_resumes_exactly(tmp_path):
    on = "rewiring.record_exploration=true"
    assert train(tmp_path / "plain") == 0
    assert train(tmp_path / "whole", on) == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 17)
        assert train(tmp_path / "cut", on) == 130
    assert main(["train", "--resume", str(tmp_path / "cut"), *QUIET]) == 0
    assert artefacts(tmp_path / "cut") == artefacts(tmp_path / "whole")
    plain, whole = (rows(tmp_path / name, "rewires") for name in ("plain", "whole"))
    rates = [float(row.pop("exploration")) for row in whole]
    assert whole == plain
    positions = 64 * 300 + 300 * 100 + 100 * 10
    assert rates[0] == pytest.approx(int(plain[0]["nonzeros"]) / positions)
    assert rates == sorted(rates) and rates[-1] > rates[0]
    states = [
        Checkpoints(tmp_path / name / "checkpoints").load_latest()[1]["exploration"]
        for name in ("cut", "whole")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


def test_a_dense_run_has_nothing_to_explore(tmp_path):
    changes = ("method=dense", "rewiring.record_exploration=true", "training.epochs=1")
    assert train(tmp_path / "r", *changes) == 0
    assert "exploration" not in rows(tmp_path / "r", "rewires")[0]
