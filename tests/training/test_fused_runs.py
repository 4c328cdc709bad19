"""model.fused: sparse models of recipes are fused, and their runs differ by rounding alone."""

from __future__ import annotations

import pytest
import torch
from helpers.small_runs import rows, small, train

from dsr_kernels.fusing.classes import is_fused
from dsr_kernels.training.data import sets as datasets
from dsr_kernels.training.run.checkpoint import Checkpoints
from dsr_kernels.training.setup import build_model


def build(*changes: str, **options) -> torch.nn.Module:
    recipe = small("wrn", *changes)
    return build_model(recipe, datasets.load(recipe.data, recipe.seed), **options)


def test_only_sparse_models_are_fused_and_only_if_told_so():
    assert is_fused(build())
    assert not is_fused(build("model.fused=false"))
    assert not any(map(is_fused, build("method=dense").modules()))
    assert not any(map(is_fused, build(sparse=False).modules()))
    fused, plain = build().state_dict(), build("model.fused=false").state_dict()
    assert fused.keys() == plain.keys()
    assert all(torch.equal(fused[name], plain[name]) for name in fused)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = {}
    for fused in ("true", "false"):
        folders[fused] = tmp_path_factory.mktemp(fused) / "run"
        assert train(folders[fused], f"model.fused={fused}", kind="wrn") == 0
    return folders


def test_runs_differ_by_rounding_alone(runs):
    losses = [float(rows(run, "metrics")[-1]["train_loss"]) for run in runs.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_checkpoints_of_either_load_into_the_other(runs):
    for fused, run in runs.items():
        weights, _ = Checkpoints(run / "checkpoints").load_latest()
        model = build(f"model.fused={'false' if fused == 'true' else 'true'}")
        model.load_state_dict(weights)
        state = model.state_dict()
        assert all(torch.equal(state[name], weights[name]) for name in state)


def test_a_run_starts_from_one_of_the_other_kind(runs, tmp_path):
    changes = f"start.run={runs['true']}", "model.fused=false"
    assert train(tmp_path / "next", *changes, kind="wrn") == 0
