"""Layers are named without what wraps the model; states load with and without it."""

from __future__ import annotations

import importlib

import pytest
import torch
from helpers.wrapped_models import NAMES, WRAPPERS, Holder, plain, sgd
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import GMP, DeepR, names
from dsr_kernels.rewiring.exploration import Exploration
from dsr_kernels.rewiring.layers import find_layers
from dsr_kernels.rewiring.names import match_names

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_of_torch_have_no_part_in_a_layers_name(wrapper):
    model = WRAPPERS[wrapper](plain())
    prefix = {"held": "model.", "held, compiled inside": "model.", "unknown": "module."}
    expected = [prefix.get(wrapper, "") + name for name in NAMES]
    assert [layer.name for layer in find_layers(model)] == expected


@pytest.mark.parametrize("name", names.WRAPPERS)
def test_every_known_wrapper_is_a_module_of_torch(name):
    """By its full name: torch may move it."""
    module, _, kind = name.rpartition(".")
    wrapper = getattr(importlib.import_module(module), kind)
    assert issubclass(wrapper, nn.Module) and wrapper.__module__ == module


def test_layers_that_would_have_one_name_have_their_full_ones():
    model = AveragedModel(nn.Sequential(SparseLinear(2, 2)))
    model.add_module("0", SparseLinear(2, 2))
    assert [name for name, _ in names.named_layers(model)] == ["module.0", "0"]


@pytest.mark.parametrize(
    "own,others,expected",
    [
        (["0", "3"], ["3", "0"], ["0", "3"]),
        (["0", "3"], ["net.0", "net.3"], ["net.0", "net.3"]),
        (["a.net.0", "a.net.3"], ["net.0", "net.3"], ["net.0", "net.3"]),
        (["fc"], ["model.fc"], ["model.fc"]),
        ([""], ["model"], ["model"]),
        (["net.0", "net.3"], ["net.0", "net.4"], None),
        (["fc"], ["head"], None),
        (["0", "1"], ["0"], None),
        (["layer1.0", "layer1.1"], ["layer2.0", "layer2.1"], None),
        ([], [], None),
    ],
)
def test_names_match_but_for_a_holder(own, others, expected):
    matched = match_names(own, others)
    assert matched == (expected and dict(zip(own, expected, strict=True)))


def test_two_holders_match_only_where_layers_are_compared():
    own, others = ["model.0", "model.1"], ["module.0", "module.1"]
    assert match_names(own, others) is None
    assert match_names(own, others, any_holder=True) == dict(zip(own, others, strict=True))


@pytest.mark.parametrize("saved_on", ["DDP", "compiled", "held", "unknown"])
@pytest.mark.parametrize("method", ["gmp", "deepr"])
def test_a_state_loads_with_and_without_wrappers(method, saved_on):
    def make(wrapper):
        model = plain()
        wrapped = WRAPPERS[wrapper](model)
        if method == "gmp":
            return model, GMP(wrapped, sgd(model), final_sparsity=0.9, end=9, every=1)
        return model, DeepR(wrapped, sgd(model), length=9, eta=1.0, l1=0.05, report_every=99)

    for first, second in ((saved_on, "plain"), ("plain", saved_on)):
        (model, rewirer), (other, resumed) = make(first), make(second)
        rewirer.step(), rewirer.step()
        other.load_state_dict(model.state_dict())
        resumed.load_state_dict(rewirer.state_dict())
        reports = [[row.nnz_after for row in r.rewire().layers] for r in (rewirer, resumed)]
        assert reports[0] == reports[1]
        assert torch.equal(model.fc.col_indices, other.fc.col_indices)
        left = resumed.take_report()
        assert left is None or {row.name for row in left.layers} <= set(
            layer.name for layer in resumed._layers
        )


def test_what_was_explored_loads_with_and_without_wrappers():
    model = plain()
    seen = Exploration(torch.compile(model))
    assert set(seen.state_dict()) == set(NAMES)
    other = Exploration(Holder(model))
    other.load_state_dict(seen.state_dict())
    assert other.rate == seen.rate
