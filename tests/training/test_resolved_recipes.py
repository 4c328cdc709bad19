"""What a recipe trains by: values that it leaves to the method, and schedules of other epochs."""

import re
from pathlib import Path

import pytest

from dsr_kernels.errors import UsageError
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.rewirer import takes
from dsr_kernels.training.recipe.scaling import never_reached
from dsr_kernels.training.recipe.schema import all_keys


def test_rewires_end_after_three_quarters_unless_a_recipe_says_when(tmp_path):
    text = recipes.dump(recipes.load("lenet300-digits"))
    silent, path = text.replace("stop_epoch = 18.0\n", ""), tmp_path / "mine.toml"

    def stop(text: str, *changes: str) -> float:
        path.write_text(text)
        return recipes.load(str(path), list(changes)).rewiring.stop_epoch

    assert silent != text and stop(silent) == 15 and stop(text) == 18
    assert (
        stop(silent, "training.epochs=10")
        == 7.5
        == stop(silent, "method=gmp", "training.epochs=10")
    )
    assert stop(silent, "method=static") == 0 == stop(silent, "rewiring.stop_epoch=0")
    assert stop(f"{silent}[variant.dsr]\nrewiring.stop_epoch = 2") == 2
    # What a run was begun with by an earlier version says 0, and keeps it.
    begun = text.replace("stop_epoch = 18.0", "stop_epoch = 0.0")
    assert stop(begun) == 0 == recipes.parse_text(begun, "recipe.toml").rewiring.stop_epoch
    assert recipes.parse_text(silent, "recipe.toml").rewiring.stop_epoch == 0


def test_keys_of_the_schema_are_what_the_resolved_recipe_holds(tmp_path):
    recipe = recipes.load("wrn28_2-digits")
    text, said = recipes.dump(recipe), recipes.values(recipe)
    for key in all_keys():
        # prune_count says what prune_fraction would; a description changes nothing.
        kept = takes("dsr", key) and key not in ("rewiring.prune_fraction", "description")
        assert kept == (key in said)
        assert not kept or f"\n{key.split('.')[-1]} = " in f"\n{text}"


@pytest.mark.parametrize(
    "method, values",
    [
        ("rigl", {"fraction": 0.3, "fraction_schedule": "cosine", "growth": "gradient"}),
        ("set", {"fraction": 0.3, "fraction_schedule": "constant", "growth": "random"}),
        ("dsr", {"prune_count": 600, "threshold": "adaptive", "prune_fraction": None}),
        ("static", {"every": None, "stop_epoch": None, "record_exploration": False}),
    ],
)
def test_a_resolved_recipe_says_what_trains_and_nothing_else(method, values, tmp_path):
    recipe = recipes.load("lenet300-digits", [f"method={method}"])
    said = recipes.values(recipe)
    assert {key: said.get(f"rewiring.{key}") for key in values} == values
    text = recipes.dump(recipe)
    assert all((f"\n{key} = " in text) == (value is not None) for key, value in values.items())
    # What an older version has written, with the keys of all methods, is the same recipe.
    old = text.replace("[rewiring]", "[rewiring]\neta = 0.01\ninitial_sparsity = 0.5")
    for key in ("fraction", "growth", "threshold"):
        old = re.sub(f"\n{key} = .*", "", old)
    assert recipes.parse_text(old, "there") == recipe
    (tmp_path / "recipe.toml").write_text(old)
    assert recipes.load(str(tmp_path / "recipe.toml"), of_run=True) == recipe


def test_without_a_number_dsr_prunes_a_tenth(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        re.sub("prune_count.*", "", Path(recipes._locate("lenet300-digits")).read_text())
    )
    assert recipes.load(str(path)).rewiring.prune_fraction == 0.1
    with pytest.raises(UsageError, match=r"set one of rewiring.prune_count and rewiring.prune_fr"):
        recipes.load(str(path), ["rewiring.prune_count=3", "rewiring.prune_fraction=.2"])


def test_a_key_that_the_method_does_not_take_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"--set rewiring.fraction: dsr does not take it; it is .*"
    ):
        recipes.load("lenet300-digits", ["rewiring.fraction=0.2"])
    own = recipes.load("lenet300-digits", ["method=rigl", "rewiring.fraction=0.2"])
    assert own.rewiring.fraction == 0.2 and own.rewiring.prune_count == 0
    path = tmp_path / "own.toml"
    text = Path(recipes._locate("lenet300-digits")).read_text()
    path.write_text(text.replace("[rewiring]", "[rewiring]\nfraction = 0.2"))
    with pytest.raises(UsageError, match=r"recipe: rewiring.fraction: dsr does not take it"):
        recipes.load(str(path))
    assert recipes.load(str(path), ["method=set"]).rewiring.fraction == 0.2
    path.write_text(f"{text}\n[variant.rigl]\nrewiring.tolerance = 0.2")
    with pytest.raises(UsageError, match=r"\[variant.rigl\]: rewiring.tolerance: rigl does not"):
        recipes.load(str(path))


def test_schedules_are_scaled_to_another_number_of_epochs(tmp_path):
    full, half = (recipes.load("wrn28_2-cifar10", epochs=epochs) for epochs in (None, 100))
    assert half.training.epochs == 100 and half.rewiring.stop_epoch == 95
    assert half.optimizer.lr == [(epoch / 2, rate) for epoch, rate in full.optimizer.lr]
    assert half.rewiring.every == [(epoch / 2, n) for epoch, n in full.rewiring.every]
    own = recipes.load("wrn28_2-cifar10", ["optimizer.lr=[[0, 1], [90, 2]]"], epochs=100)
    assert own.optimizer.lr == [(0, 1), (90, 2)]
    static = recipes.load("wrn28_2-cifar10", ["method=static"], epochs=100)
    assert static.optimizer.lr == [(0, 0.1), (30, 0.02), (55, 0.004), (87.5, 0.0008)]
    numbers = tmp_path / "numbers.toml"
    text = recipes.dump(recipes.load("lenet300-digits"))
    for key, value in (("lr", "0.1"), ("every", "100")):
        text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
    numbers.write_text(text)
    rates = recipes.load(str(numbers), epochs=7)
    assert rates.optimizer.lr == [(0, 0.1)] and rates.rewiring.every == [(0, 100)]
    assert rates.rewiring.stop_epoch == pytest.approx(18 * 7 / 20)
    for wrong in (0, -1, 2**31):
        with pytest.raises(UsageError, match="--epochs: expected 1 to"):
            recipes.load("wrn28_2-cifar10", epochs=wrong)


def test_what_is_never_reached_is_said():
    short = recipes.load("wrn28_2-digits", ["training.epochs=6"])
    said = "optimizer.lr changes at epoch 6, 9; rewiring.every changes at epoch 6; "
    assert never_reached(short) == said + "rewiring.stop_epoch is 10"
    assert never_reached(recipes.load("wrn28_2-digits")) == ""
    assert never_reached(recipes.load("wrn28_2-digits", epochs=6)) == ""
