"""`dsr train` with model.block_size: runs are stopped and continued, taken over and refused."""

from __future__ import annotations

import json

import pytest
from helpers.small_runs import QUIET, artefacts, interrupt_at, refused, rows, train
from safetensors.torch import load_file

from dsr_kernels.cli import main
from dsr_kernels.training.recipe import load

METHODS = {
    "dsr": ["model.block_size=16"],
    "rigl": ["model.block_size=4", "rewiring.fraction=0.3"],
    "gmp": ["model.block_size=16"],
}


@pytest.mark.parametrize("method", METHODS)
def test_a_continued_run_equals_the_uninterrupted_one(method: str, tmp_path) -> None:
    changes = [f"method={method}", "rewiring.record_exploration=true", *METHODS[method]]
    assert train(tmp_path / "whole", *changes) == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 14)
        assert train(tmp_path / "cut", *changes) == 130
    assert main(["train", "--resume", str(tmp_path / "cut"), *QUIET]) == 0
    assert artefacts(tmp_path / "cut") == artefacts(tmp_path / "whole")
    assert len(rows(tmp_path / "whole", "rewires")) >= 4
    weights = load_file(tmp_path / "whole/checkpoints/latest/weights.safetensors")
    widths = [t.shape[1] for key, t in weights.items() if key.endswith("weight_values")]
    assert sorted(widths) == [2, 4, 4]  # of 10, 100 and 300 outputs


def test_structure_is_taken_from_a_run_of_the_same_blocks_alone(tmp_path, capsys) -> None:
    assert train(tmp_path / "first", "model.block_size=4", "training.epochs=1") == 0
    take = [f"start.run={tmp_path / 'first'}", "start.take=structure", "method=static"]
    assert train(tmp_path / "same", "model.block_size=4", *take) == 0
    first, same = (
        load_file(tmp_path / run / "checkpoints/latest/weights.safetensors")
        for run in ("first", "same")
    )
    for key, index in first.items():
        if key.endswith("indices"):
            assert index.tolist() == same[key].tolist()
    args = [part for change in take for part in ("--set", change)]
    args += ["--recipe", "lenet300-digits", "--set", "data.image_size=0", *QUIET]
    text = refused(capsys, "train", *args, "--out", str(tmp_path / "other"))
    assert "block_size=1 here, 4 in" in text
    args[args.index("start.take=structure")] = "start.take=weights"
    text = refused(capsys, "train", *args, "--out", str(tmp_path / "other"))
    assert "start.run: layer" in text and not (tmp_path / "other").exists()


def test_a_run_says_which_blocks_its_layers_got(tmp_path, capsys) -> None:
    assert train(tmp_path / "run", "model.block_size=4", "training.epochs=1") == 0
    shown = capsys.readouterr().out
    assert "layers whose channels do not divide by blocks of 4: 1 in blocks of 2\n" in shown
    layers = json.loads((tmp_path / "run/run.json").read_text())["model"]["layers"]
    assert [layer["block_size"] for layer in layers] == [4, 4, 2]


def test_blocks_are_pruned_by_selection_unless_the_recipe_says_otherwise(tmp_path) -> None:
    """Doubling a threshold would take it past none and then a third of them."""
    changes = ["model.block_size=4", "training.epochs=1"]
    assert train(tmp_path / "exact", *changes) == 0
    recipe = load.load(str(tmp_path / "exact/recipe.toml"))
    assert recipe.rewiring.threshold == ""
    count = recipe.rewiring.prune_count
    pruned = [int(row["pruned"]) for row in rows(tmp_path / "exact", "rewires")[1:]]
    assert pruned and all(count - 4 < n <= count for n in pruned)
    assert train(tmp_path / "adaptive", *changes, "rewiring.threshold=adaptive") == 0
    assert pruned != [int(row["pruned"]) for row in rows(tmp_path / "adaptive", "rewires")[1:]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.block_size=3"], "model.block_size: expected one of (1, 2, 4, 8, 16, 32), got 3"),
        (["model.block_size=64"], "expected one of (1, 2, 4, 8, 16, 32), got 64"),
        (
            ["model.block_size=4", "method=deepr"],
            "model.block_size: method deepr rewires single weights alone, expected 1, got 4",
        ),
        (
            ["model.block_size=16", "model.sparsity=0.9999"],
            "less than a block of",
        ),
        (
            ["model.block_size=16", "method=gmp", "rewiring.scope=global"],
            "prunes over layers of one block size",
        ),
    ],
)
def test_recipes_that_cannot_run_are_refused_in_a_sentence(changes, message, tmp_path, capsys):
    sets = [part for change in changes for part in ("--set", change)]
    args = ["--recipe", "lenet300-digits", *sets, *QUIET, "--out", str(tmp_path / "run")]
    assert message in refused(capsys, "train", *args)
