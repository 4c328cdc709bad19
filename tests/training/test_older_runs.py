"""Runs of older versions go on with the recipes that they were begun with."""

from __future__ import annotations

import types

import pytest
from helpers.small_runs import QUIET, interrupt_at, refused

from dsr_kernels.cli import main
from dsr_kernels.errors import UsageError
from dsr_kernels.experiments.folder import Folder
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.run.folder import Run

SHORT = ["training.epochs=1", "model.width=0.1"]


@pytest.fixture
def silent(tmp_path):
    """A recipe that does not say when rewires end."""
    path = tmp_path / "mine.toml"
    text = recipes.dump(recipes.load("lenet300-digits", [*SHORT, "rewiring.stop_epoch=0"]))
    path.write_text(text.replace("stop_epoch = 0.0\n", ""))
    assert "stop_epoch" not in path.read_text()
    return path


def test_a_run_that_was_begun_without_an_end_of_rewires_goes_on(
    silent, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    given = ["train", *QUIET, "--recipe", str(silent), "--out", str(run)]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert main([*given, "--set", "rewiring.stop_epoch=0"]) == 130  # as older versions did
    assert "stop_epoch = 0.0" in (run / "recipe.toml").read_text()
    capsys.readouterr()
    other = refused(capsys, *given, "--resume", "--set", "rewiring.stop_epoch=0.5")
    assert "rewiring.stop_epoch: 0.0 and 0.5" in other
    assert main([*given, "--resume"]) == 0
    assert Run.open(run).recipe().rewiring.stop_epoch == 0


def test_so_does_a_cell_of_an_experiment(silent, tmp_path):
    folder, cell = Folder(tmp_path), types.SimpleNamespace(name="cell")
    never = recipes.load(str(silent), ["rewiring.stop_epoch=0"])
    folder.runs.mkdir()
    Run.create(folder.run_of(cell), never).release()
    cell.recipe = recipes.load(str(silent))
    assert cell.recipe.rewiring.stop_epoch == 0.75
    folder._check(cell)
    cell.recipe = recipes.load(str(silent), ["rewiring.stop_epoch=0.5"])
    with pytest.raises(UsageError, match=r"rewiring.stop_epoch: 0.0 and 0.5"):
        folder._check(cell)
