"""Thin dense networks: as wide as the sparse network's parameters allow, and dense everywhere."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from helpers.small_runs import rows, small, train
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr_kernels.errors import UsageError
from dsr_kernels.models import lenet_300_100, resnet18, resnet50, thin_width, wrn_28
from dsr_kernels.models.thin import learnable, learnable_if_sparse
from dsr_kernels.nn import named_sparse_modules
from dsr_kernels.training.run.checkpoint import Checkpoints
from dsr_kernels.training.run.folder import Run
from dsr_kernels.training.setup import build_model, model_width

BUILDERS = {"wrn28": wrn_28, "lenet300": lenet_300_100, "resnet18": resnet18, "resnet50": resnet50}


def twin(name):
    """Width -> dense network without memory."""
    return lambda width: BUILDERS[name](width=width, sparse=False, device="meta")


def wrn_parameters(width):
    """WRN-28 on RGB images with ten classes, counted by hand."""
    total, inputs = 3 * 16 * 9, 16
    for base in (16, 32, 64):
        outputs = round(base * width)
        if inputs != outputs or base > 16:
            total += inputs * outputs  # the shortcut
        for block in range(4):
            source = inputs if block == 0 else outputs
            total += 9 * outputs * (source + outputs) + 2 * (source + outputs)
        inputs = outputs
    return total + 2 * inputs + 10 * inputs + 10


@pytest.mark.parametrize("width", [0.75, 0.98, 1.15, 1.33, 1.47, 2.0])
def test_wrn_of_the_papers_widths_has_the_parameters_of_a_count_by_hand(width):
    model = wrn_28(width, sparse=False)
    assert learnable(model) == wrn_parameters(width) == learnable(twin("wrn28")(width))


@pytest.mark.parametrize("name", BUILDERS)
def test_parameters_of_the_sparse_network_are_known_without_building_it(name):
    expected = learnable(BUILDERS[name](sparsity=0.93))
    assert learnable_if_sparse(twin(name)(2.0 if name == "wrn28" else 1.0), 0.93) == expected


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["lenet300", "wrn28"]), st.floats(0.3, 0.98))
def test_the_width_is_the_largest_within_the_budget(name, sparsity):
    usual = 2.0 if name == "wrn28" else 1.0
    build, width = twin(name), thin_width(twin(name), usual, sparsity)
    budget = learnable_if_sparse(build(usual), sparsity)
    assert learnable(build(width)) <= budget < learnable(build(width + 0.001))
    assert width == round(width, 3) < usual


def test_a_sparsity_of_zero_leaves_the_usual_width():
    assert thin_width(twin("wrn28"), 2.0, 0.0) == 2.0


def test_widths_multiply_the_channels_and_leave_at_least_one():
    assert lenet_300_100(width=0.5).fc2.weight_shape == (50, 150)
    assert lenet_300_100(width=0.001).fc2.weight_shape == (1, 1)
    model = resnet50(width=0.46, sparse=False, device="meta")
    assert model.stem.out_channels == round(64 * 0.46)
    assert model.stage4[2].conv3.weight.shape == (4 * round(512 * 0.46), round(512 * 0.46), 1, 1)
    narrow = resnet18(width=0.05, num_classes=5)(torch.randn(2, 3, 32, 32))
    assert narrow.shape == (2, 5)


def data_like(shape=(3, 32, 32), classes=10):
    return SimpleNamespace(image_shape=shape, classes=classes, dtype=torch.float32)


def test_width_of_a_recipe():
    """0 is the usual one or, for thin_dense, what the sparsity leaves; given widths stay."""
    cases = {
        ("method=dsr", "model.width=0"): 2.0,
        ("method=dense", "model.width=0"): 2.0,
        ("method=dsr", "model.width=0.25"): 0.25,
        ("method=thin_dense", "model.width=0.75"): 0.75,
        ("method=thin_dense", "model.width=0"): thin_width(twin("wrn28"), 2.0, 0.9),
    }
    for changes, expected in cases.items():
        recipe = small("wrn", *changes)
        assert model_width(recipe, data_like()) == expected
        model = build_model(recipe, data_like())
        assert model.fc.in_features == max(1, round(64 * expected))
        assert bool(list(named_sparse_modules(model))) == ("method=dsr" in changes)
    assert model_width(small("lenet"), data_like((1, 8, 8))) == 1.0


def test_a_budget_below_the_narrowest_network_is_refused():
    recipe = small("lenet", "method=thin_dense", "model.sparsity=0.9999")
    message = "model.sparsity: the sparse network has 916 parameters at 0.9999, and the narrowest"
    with pytest.raises(UsageError, match=re.escape(message)):
        model_width(recipe, data_like())


def test_a_run_is_dense_within_the_budget_and_records_its_width(tmp_path, capsys):
    assert train(tmp_path / "run", "method=thin_dense", "training.epochs=1") == 0
    model = Run.open(tmp_path / "run").read_json("run.json")["model"]
    sparse = learnable(build_model(small("lenet"), data_like((1, 8, 8))))
    assert model["layers"] == [] and sparse * 0.9 < model["learnable"] <= sparse
    assert (
        f"dense, width {model['width']:g}: {model['learnable']:,} param" in capsys.readouterr().out
    )
    weights = Checkpoints(tmp_path / "run/checkpoints").load_latest()[0]
    hidden = [max(1, round(base * model["width"])) for base in (300, 100)]
    assert weights["fc2.weight"].shape == (hidden[1], hidden[0])
    assert math.prod(weights["fc1.weight"].shape) == 64 * hidden[0]
    assert len(rows(tmp_path / "run", "rewires")) == 1
