"""DeepR: which weights flip, what happens to signs, what pull and noise do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.method_cases import (
    OPTIMIZERS,
    assert_frozen_untouched,
    assert_rewired,
    bundles,
    snapshot,
)
from helpers.method_oracles import order
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import DeepR

QUIET = {"temperature": 0.0, "length": 10}


def signs_of(rewirer, layer_name, layer) -> dict[int, int]:
    positions = layer.topology.linear_positions().tolist()
    return dict(zip(positions, rewirer.signs[layer_name].flatten().tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(bundles(), st.sampled_from([0.0, 0.3, 0.7, 2.0]), st.sampled_from(list(OPTIMIZERS)))
def test_weights_that_change_sign_are_replaced_in_their_layer(bundle, l1, name):
    optimizer = OPTIMIZERS[name](bundle.parameters())
    rewirer = DeepR(bundle, optimizer, l1=l1, eta=0.5, report_every=1, **QUIET)
    for iteration in range(3):
        bundle.backward(iteration)
        optimizer.step()
        before = snapshot(bundle, optimizer)
        signs = [signs_of(rewirer, f"layers.{i}", m) for i, m in enumerate(bundle.layers)]
        report = rewirer.step()
        after = snapshot(bundle, optimizer)
        assert_frozen_untouched(bundle, before, after)
        moved = 0
        for i in bundle.live():
            old, layer, sign = before[i], bundle.layers[i], signs[i]
            pulled = {p: np.float32(e[0]) - np.float32(0.5 * l1) * sign[p] for p, e in old.items()}
            right = {p: float(w * sign[p] >= 0) for p, w in pulled.items()}
            flipped = sum(r == 0 for r in right.values())
            pruned = order(right)[: min(flipped, layer.numel - len(old))]  # as many as can grow
            stay = {p: (0.0 if right[p] == 0 else float(pulled[p]), *e[1:]) for p, e in old.items()}
            assert_rewired(stay, after[i], set(pruned), len(pruned))
            now = signs_of(rewirer, f"layers.{i}", layer)
            assert all(now[p] == sign[p] for p in now if p in old)
            assert set(now.values()) <= {-1, 1}
            moved += len(pruned)
        assert (report.pruned if report else 0) == moved
        if report:
            assert [row.name for row in report.layers] == [f"layers.{i}" for i in bundle.live()]


def large(size: int = 100, value: float = 5.0, **arguments):
    """One layer whose weights no noise can flip."""
    model = nn.Sequential(SparseLinear(size, size, sparsity=0.5))
    model[0].weight_values.data.fill_(value)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return model, DeepR(model, optimizer, **{"l1": 0.0, "eta": 0.5, "length": 4} | arguments)


def test_noise_has_its_temperature():
    """sqrt(2 eta T) times standard normal numbers, of another kind every iteration."""
    model, rewirer = large(temperature=1e-2, final_temperature=1e-6)
    noises = []
    for t in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-6):
        before = model[0].weight_values.detach().double().clone()
        assert rewirer.step() is None
        noise = (model[0].weight_values.detach().double() - before) / math.sqrt(2 * 0.5 * t)
        assert abs(noise.mean()) < 5 / math.sqrt(5000)
        assert abs(noise.var() - 1) < 5 * math.sqrt(2 / 5000)
        assert abs((noise**4).mean() - 3) < 5 * math.sqrt(96 / 5000)
        noises.append(noise)
    correlations = torch.corrcoef(torch.cat(noises, 1).T) - torch.eye(6)
    assert correlations.abs().max() < 5 / math.sqrt(5000)


def test_noise_depends_on_seed_and_layer():
    found = []
    for seed in (0, 0, 1):
        _, rewirer = large(40, temperature=1e-2, seed=seed)
        rewirer.step()
        found.append(rewirer._layers[0].weight_values.detach().clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    model = nn.Sequential(*(SparseLinear(9, 9, nnz=40) for _ in range(2)))
    for layer in model:
        layer.weight_values.data.fill_(5.0)
    DeepR(model, torch.optim.SGD(model.parameters(), lr=0.0), temperature=1e-2, length=9).step()
    assert not torch.equal(model[0].weight_values, model[1].weight_values)


def test_grown_weights_get_signs_of_both_kinds():
    model, rewirer = large(value=-1.0, **QUIET)
    model[0].weight_values.data[:2000] = 1.0  # against their sign
    rewirer.step()
    signs, values = rewirer.signs["0"], model[0].weight_values.detach()
    grown = values == 0
    assert grown.sum() == 2000 and (signs[~grown] == -1).all()
    assert abs(signs[grown].float().sum()) < 5 * math.sqrt(2000)


def test_no_rewire_from_stop_on():
    model, rewirer = large(stop=2, temperature=1e-2, length=None)
    for _ in range(2):
        rewirer.step()
    before = model[0].weight_values.detach().clone()
    model[0].weight_values.data[:9] *= -1
    assert rewirer.step() is None and rewirer.iteration == 3
    assert torch.equal(model[0].weight_values[9:], before[9:])


def test_reports_add_up_also_when_layers_freeze():
    model = nn.Sequential(*(SparseLinear(9, 9, nnz=40) for _ in range(2)))
    for layer in model:
        layer.weight_values.data.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rewirer = DeepR(model, optimizer, report_every=3, l1=0.0, **QUIET)
    assert [rewirer.step() for _ in range(3)] == [None] * 3  # nothing to report
    for flips in (2, 3):
        for name, layer in model.named_children():
            layer.weight_values.data[:flips] = -rewirer.signs[name][:flips].float()
        assert rewirer.step() is None
        model[0].weight_values.requires_grad_(False)
    report = rewirer.step()
    rows = {row.name: row.pruned for row in report.layers}
    assert rows == {"0": 2, "1": 5} and report.pruned == report.grown == 7 and report.step == 6
    assert [rewirer.step() for _ in range(3)] == [None] * 3
    model[1].weight_values.requires_grad_(False)
    assert rewirer.step() is None  # there is nothing left to do


def test_what_is_left_is_reported_at_stop_and_when_asked_for():
    def flip():
        model[0].weight_values.data[:4] = -rewirer.signs["0"][:4].float()
        return rewirer.step()

    model, rewirer = large(20, report_every=100, stop=3, temperature=0.0)
    reports = [flip() for _ in range(5)]
    assert [report and (report.step, report.pruned) for report in reports] == [
        None,
        None,
        (3, 12),
        None,
        None,
    ]
    assert rewirer.take_report() is None
    model, rewirer = large(20, report_every=3, **QUIET)
    reports = [flip() for _ in range(5)]
    assert [report and report.pruned for report in reports] == [None, None, 12, None, None]
    state = rewirer.state_dict()
    assert [(left.step, left.pruned) for left in [rewirer.take_report()]] == [(5, 8)]
    assert rewirer.take_report() is None and rewirer.state_dict()["sum"] is None
    rewirer.load_state_dict(state)
    assert rewirer.take_report().pruned == 8


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_stops_it_before_anything_changes(bad):
    model, rewirer = large(20, temperature=1e-2)
    model[0].weight_values.data[7] = bad
    model[0].weight_values.data[3] = -9.0
    before = model[0].weight_values.detach().clone(), model[0].col_indices.clone()
    for _ in range(2):
        with pytest.raises(ValueError, match="layer '0': a weight is not finite"):
            rewirer.step()
        assert torch.equal(model[0].weight_values.nan_to_num(), before[0].nan_to_num())
        assert torch.equal(model[0].col_indices, before[1]) and rewirer.iteration == 0


@pytest.mark.parametrize("nnz", [200, 100])
def test_a_model_that_is_loaded_brings_its_own_signs(nnz):
    model, rewirer = large(20, **QUIET)
    other = SparseLinear(20, 20, nnz=nnz)
    model[0].load_state_dict(other.state_dict())
    assert rewirer.step() is None and rewirer.rewires == 0
    assert torch.equal(
        rewirer.signs["0"], torch.where(other.weight_values < 0, -1, 1).to(torch.int8)
    )
    assert rewirer.state_dict()["signs"]["0"].shape == (nnz, 1)


def test_indices_that_are_written_anew_with_what_they_hold_leave_the_signs():
    """As a broadcast of buffers does, before every forward pass under DDP."""
    moved = []
    for rewrite in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(SparseLinear(30, 30, sparsity=0.5))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rewirer = DeepR(model, optimizer, l1=0.05, eta=0.1, report_every=20, **QUIET)
        for i in range(20):
            if rewrite:
                for index in model.buffers():
                    index.copy_(index.clone())
            optimizer.zero_grad()
            model(torch.randn(8, 30, generator=torch.Generator().manual_seed(i))).sum().backward()
            optimizer.step()
            report = rewirer.step()
        moved.append((report.pruned, model[0].weight_values.tolist()))
    assert moved[0] == moved[1] and moved[0][0] > 100


def test_a_model_that_is_loaded_brings_its_own_signs_on_the_same_pattern_too():
    model, rewirer = large(20, **QUIET)
    loaded = {k: -v if k.endswith("values") else v for k, v in model.state_dict().items()}
    model.load_state_dict(loaded)
    assert rewirer.step() is None and (rewirer.signs["0"] == -1).all()
    values = -model[0].weight_values.detach()
    model[0].replace_topology(model[0].crow_indices, model[0].col_indices, values)
    assert rewirer.step() is None and (rewirer.signs["0"] == 1).all()


def test_states_with_other_signs_are_refused():
    _, rewirer = large(20, **QUIET)
    state = rewirer.state_dict()
    good = state["signs"]["0"]
    for signs, message in (
        ({}, "signs: expected \\(200, 1\\) for layer '0', got none"),
        (
            {"0": good[:9]},
            r"signs: expected \(200, 1\) for layer '0', got \(9, 1\); load the model first",
        ),
        ({"0": good * 0}, "signs: expected 1 and -1 for layer '0'"),
    ):
        with pytest.raises(ValueError, match=message):
            rewirer.load_state_dict({**state, "iteration": 5, "signs": signs})
        assert rewirer.iteration == 0 and torch.equal(rewirer.signs["0"], good)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"l1": -1.0}, "l1: expected a finite number >= 0, got -1.0"),
        ({"eta": math.inf}, "eta: expected a finite number"),
        ({"length": None}, "length: expected the iterations over which T falls, or `stop`"),
        ({"final_temperature": 0.0}, r"final_temperature: expected a number in \(0, 1e-05\]"),
        ({"final_temperature": 1.0}, r"final_temperature: expected a number in \(0, 1e-05\]"),
        ({"report_every": 0}, "report_every: expected an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        large(9, **arguments)
