"""What methods say of a recipe's [rewiring] table fits their constructors."""

from __future__ import annotations

import dataclasses
from inspect import signature

import pytest

from dsr_kernels.rewiring import DSR, METHODS, SET
from dsr_kernels.rewiring.recipe_keys import EVERY, ByEpoch, Key, MethodRecipe, all_keys
from dsr_kernels.training.recipe.schema import Rewiring


def recipe(**rewiring) -> MethodRecipe:
    defaults = {key.name: key.default for key in all_keys(METHODS.values())}
    return MethodRecipe({**defaults, **rewiring}, 0.9, "weight", block_size=1, epochs=3, seed=7)


@pytest.mark.parametrize("name", METHODS)
def test_every_argument_is_one_of_the_constructors(name):
    method = METHODS[name]
    parameters = signature(method).parameters
    everything = {
        key.name: {int: 2, float: 0.5, ByEpoch: [(0.0, 20.0), (1.5, 40.0)]}.get(
            key.kind, key.choices and key.choices[-1]
        )
        for key in all_keys(METHODS.values())
    }
    for values in ({}, everything):
        arguments = method.recipe_arguments(recipe(**values), epoch_length=10)
        assert set(arguments) <= set(parameters)
        for needed in parameters.values():
            if needed.default is needed.empty:
                assert needed.name in {*arguments, "model", "optimizer"}


@pytest.mark.parametrize("name", METHODS)
def test_a_key_left_at_its_default_is_the_constructors_default(name):
    arguments = METHODS[name].recipe_arguments(recipe(), epoch_length=10)
    defaults = {key: value.default for key, value in signature(METHODS[name]).parameters.items()}
    derived = {"seed", "schedule", "length", "end", "final_sparsity"}  # from the rest of the recipe
    for argument in set(arguments) - derived:
        assert arguments[argument] == defaults[argument]


def test_epochs_become_iterations():
    arguments = SET.recipe_arguments(recipe(every=[(0, 20), (1.5, 40)], stop_epoch=2.5), 10)
    assert arguments["schedule"] == [(0, 20), (15, 40)]
    assert arguments["stop"] == arguments["length"] == 25
    arguments = SET.recipe_arguments(recipe(), 10)
    assert "stop" not in arguments and arguments["length"] == 30


def test_one_name_means_one_thing():
    class Other(SET):
        RECIPE = (EVERY, Key("tolerance", float, 0.5))

    with pytest.raises(ValueError, match=r"Other.RECIPE: key 'tolerance' differs from another"):
        all_keys([DSR, Other])
    assert all_keys([DSR, SET, DSR]) == all_keys([DSR, SET])


def test_the_schema_has_the_keys_of_all_methods():
    fields = [field.name for field in dataclasses.fields(Rewiring)]
    assert fields == [*(key.name for key in all_keys(METHODS.values())), "record_exploration"]


def test_a_report_draws_the_target_of_the_threshold_that_runs():
    for threshold, block_size, tolerance in (
        ("", 1, 0.1),
        ("", 16, None),
        ("adaptive", 16, 0.1),
        ("exact", 1, None),
    ):
        asked = recipe(threshold=threshold, prune_count=100)
        target = DSR.prune_target(dataclasses.replace(asked, block_size=block_size))
        assert target is not None and target.tolerance == tolerance
