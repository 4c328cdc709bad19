"""GraphedStep gives what a plain loop gives, bit for bit, whatever changes between its steps."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pytest
import torch
from helpers.graph_stand_in import Device, Graph
from helpers.graphed_twins import Twins, batches, network, sgd
from helpers.method_training import METHODS
from torch import nn
from torch.nn import functional as F

from dsr_kernels.backends.patterns import patterns
from dsr_kernels.cuda import GraphedStep, replayer
from dsr_kernels.nn import SparseLinear, named_sparse_modules
from dsr_kernels.rewiring import DSR

dsr = partial(DSR, prune_fraction=0.2, every=5)


def counts() -> tuple[int, int]:
    return Graph.captures, Graph.replays


def test_the_second_step_is_captured_and_replayed_with_those_after_it() -> None:
    twins = Twins()
    losses = twins.train(batches(6))
    assert counts() == (1, 5) and twins.step.is_replaying
    assert len(set(losses)) == 6
    assert twins.step._replayer._stream.waits == [Device.default]  # the eager step's
    assert Device.default is Device.current


def test_a_step_returns_a_loss_that_later_ones_leave_alone() -> None:
    twins = Twins()
    losses = [twins.step(*batch) for batch in batches(4)]
    kept = [loss.item() for loss in losses]
    twins.step(*next(batches(1)))
    assert [loss.item() for loss in losses] == kept
    assert not any(loss.requires_grad for loss in losses)


@pytest.mark.parametrize("attach", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_rewires_as_in_a_plain_loop(method: str, attach: bool) -> None:
    make, arguments = METHODS[method]
    twins = Twins(make_rewirer=partial(make, **arguments), attach=attach)
    twins.train(batches(26))
    assert twins.graphed.rewirer.rewires and twins.step.why_eager is None
    captures, replays = counts()
    if method == "deepr":  # it moves something in every step
        assert captures <= replays
    else:  # three iterations: two eager ones where the next one's gradient is looked at
        eager_each = 2 if method in ("rigl", "snfs") else 1
        assert captures >= 7 and captures + replays >= 26 - 9 * eager_each
    assert not attach or twins.reports


def test_memory_is_that_of_one_graph_over_many_rewires() -> None:
    small = nn.Sequential(nn.Flatten(), SparseLinear(192, 5, sparsity=0.9))
    twins = Twins(small, make_rewirer=partial(dsr, every=2))
    twins.train(batches(4))
    first = Device.memory()
    twins.train(batches(200, seed=2))  # each capture asserts that no older graph has memory
    assert twins.graphed.rewirer.rewires == 102
    assert counts()[0] > 100
    assert 0 < Device.memory() <= first
    assert len(Graph.living) <= 1


def test_nothing_is_captured_again_where_a_rewire_was_due_and_nothing_moved() -> None:
    twins = Twins(make_rewirer=partial(DSR, every=4, prune_count=1, initial_threshold=1e-30))
    twins.train(batches(8))
    assert counts() == (1, 7)


def test_the_report_of_a_rewire(capsys) -> None:
    twins = Twins(make_rewirer=partial(dsr, every=3))
    reports = []
    for batch in batches(7):
        twins.step(*batch)
        reports.append(twins.step.report and twins.step.report.step)
    assert reports == [None, None, 3, None, None, 6, None]


def test_an_attached_rewirer_is_known_by_itself_and_stays_attached() -> None:
    model = network()
    optimizer = sgd(model)
    rewirer = dsr(model, optimizer)
    with rewirer.attach():
        step = GraphedStep(model, F.cross_entropy, optimizer)
        for batch in batches(7):
            step(*batch)
        assert rewirer.iteration == 7 and rewirer.rewires == 1
        with pytest.raises(RuntimeError, match="an iteration would count twice"):
            rewirer.step()
        optimizer.zero_grad()
        optimizer.step()
        assert rewirer.iteration == 8
    assert step.why_eager is None


def test_dropout_draws_what_eager_steps_would() -> None:
    twins = Twins(network(dropout=0.5))
    losses = twins.train((x, y) for _ in range(5) for x, y in batches(1))
    assert counts() == (1, 4) and len(set(losses)) == 5


def test_clipping_between_backward_and_step() -> None:
    twins = Twins(clip=0.1)
    twins.train(batches(5))
    assert counts() == (1, 4)


def test_a_scaled_loss_and_steps_that_are_left_out() -> None:
    twins = Twins(make_optimizer=partial(sgd, fused=True), scaled=True, make_rewirer=dsr)
    twins.train(batches(8))
    before = twins.graphed.scaler.get_scale()
    weights = copy.deepcopy(twins.graphed.model[9].weight)
    twins.train((x * float("inf"), y) for x, y in batches(1))
    assert twins.graphed.scaler.get_scale() == before / 2
    assert torch.equal(weights, twins.graphed.model[9].weight)
    twins.graphed.model[1].reset_running_stats(), twins.plain.model[1].reset_running_stats()
    replays = Graph.replays
    twins.train(batches(1, seed=2))
    assert Graph.replays > replays


@pytest.mark.parametrize("around", [False, True], ids=["argument", "around the loop"])
def test_autocast_casts_the_weights_of_each_step(around: bool) -> None:
    twins = Twins(autocast=torch.bfloat16)
    if around:
        twins.step.autocast = None
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        twins.train(batches(5))
    assert counts() == (1, 4)


def test_weights_that_autocast_has_cast_are_of_no_other_step() -> None:
    """Within one autocast around a whole loop torch goes on with the casts of the first step."""
    twins = Twins(autocast=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        losses = [twins.step(*batch) for batch in batches(5)]
    assert [loss.item() for loss in losses] == [
        twins._plain_step(*batch).item() for batch in batches(5)
    ]
    assert counts() == (1, 4)


def test_autocast_that_comes_and_goes() -> None:
    twins = Twins()
    twins.train(batches(3))
    twins.autocast = twins.step.autocast = torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        twins.train(batches(3, seed=2))
    assert counts() == (2, 4)


def test_a_graph_keeps_the_plans_that_it_reads() -> None:
    twins = Twins()
    twins.train(batches(3))
    recording = twins.step._replayer._recording
    known = {id(plan) for plan in recording._plans}
    assert {id(plan) for plan in patterns.plans()} <= known
    patterns.clear()
    twins.train(batches(2, seed=2))
    assert recording is twins.step._replayer._recording and recording._plans


def test_without_a_gpu_all_steps_are_eager_without_a_word(monkeypatch) -> None:
    monkeypatch.setattr(replayer, "GPU", "cuda")
    twins = Twins(make_rewirer=dsr, attach=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twins.train(batches(7))
    assert counts() == (0, 0) and twins.step.why_eager is None and len(twins.reports) == 1
    assert [*named_sparse_modules(twins.graphed.model)]


def test_a_model_that_moves_begins_anew() -> None:
    twins = Twins()
    twins.train(batches(3))
    for side in twins.sides:
        side.model.double()
    twins.train((x.double(), y) for x, y in batches(3, seed=2))
    assert counts()[0] == 2
