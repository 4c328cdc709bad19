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


# --- numbers of the optimizer ---------------------------------------------------------------------


def test_a_learning_rate_that_changes_now_and_then() -> None:
    twins = Twins()
    for epoch, rate in enumerate([0.1, 0.05, 0.01]):
        for side in twins.sides:
            side.optimizer.param_groups[0]["lr"] = rate
        twins.train(batches(4, seed=epoch))
    assert counts() == (3, 9)


def test_a_learning_rate_that_changes_in_every_step_is_never_an_old_one(monkeypatch) -> None:
    monkeypatch.setattr(replayer, "RESTLESS", 5)
    twins = Twins()
    for side in twins.sides:
        side.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(side.optimizer, 20)
    with pytest.warns(UserWarning, match="something has changed in each of 5 steps") as told:
        for batch in batches(12):
            twins.train(iter([batch]))
            for side in twins.sides:
                side.schedule.step()
    assert counts() == (0, 0) and len(told) == 1


def test_a_learning_rate_on_the_device_is_read_there() -> None:
    make = lambda model: sgd(model, lr=torch.tensor(0.05), fused=True)  # noqa: E731
    twins = Twins(make_optimizer=make)
    for side in twins.sides:
        side.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(side.optimizer, 20)
    for batch in batches(8):
        twins.train(iter([batch]))
        for side in twins.sides:
            side.schedule.step()
    assert counts() == (1, 7)


@pytest.mark.parametrize(
    "key,value", [("momentum", 0.5), ("weight_decay", 0.1), ("nesterov", True), ("maximize", True)]
)
def test_any_number_of_a_group_that_changes(key: str, value: float) -> None:
    twins = Twins()
    twins.train(batches(3))
    for side in twins.sides:
        side.optimizer.param_groups[0][key] = value
    twins.train(batches(3, seed=2))
    assert counts() == (2, 4)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_fused_adam(kind: type[torch.optim.Adam]) -> None:
    make = lambda model: kind(model.parameters(), lr=0.01, fused=True)  # noqa: E731
    twins = Twins(make_optimizer=make, make_rewirer=dsr)
    twins.train(batches(12))
    assert counts() == (3, 9)
    assert not twins.graphed.optimizer.param_groups[0]["capturable"]
    twins.graphed.optimizer.param_groups[0]["betas"] = (0.5, 0.9)
    twins.plain.optimizer.param_groups[0]["betas"] = (0.5, 0.9)
    twins.train(batches(3, seed=2))
    assert counts() == (4, 11)


# --- batches, modes, tensors ----------------------------------------------------------------------


def test_a_last_smaller_batch_is_eager_and_the_graph_stays() -> None:
    twins = Twins()
    for epoch in range(3):
        twins.train(batches(4, seed=epoch))
        twins.train(batches(1, size=4, seed=epoch))
    assert counts() == (1, 11)


def test_of_two_batches_of_another_shape_the_second_gets_the_graph() -> None:
    twins = Twins()
    twins.train(batches(3))
    twins.train(batches(3, size=4))
    assert counts() == (2, 4)
    assert len(Graph.living) == 1


def test_another_memory_format_of_the_batch_is_another_look() -> None:
    twins = Twins()
    twins.train(batches(3))
    twins.train((x.to(memory_format=torch.channels_last), y) for x, y in batches(3, seed=2))
    assert counts() == (2, 4)


def test_evaluation_between_steps_and_a_frozen_part() -> None:
    twins = Twins()
    twins.train(batches(3))
    for side in twins.sides:
        side.model.eval()
        with torch.no_grad():
            side.model(next(batches(1))[0])
        side.model.train()
    twins.train(batches(2, seed=2))
    assert counts() == (1, 4)
    for side in twins.sides:
        side.model[1].eval()
    twins.train(batches(2, seed=3))
    assert counts() == (2, 5)
    for side in twins.sides:
        side.model[0].weight_values.requires_grad_(False)
        side.model[0].weight_values.grad = None
    twins.train(batches(3, seed=4))
    assert counts() == (3, 7)


def test_what_is_loaded_between_steps_is_trained() -> None:
    twins = Twins(make_rewirer=dsr)
    twins.train(batches(3))
    kept = [
        copy.deepcopy((side.model.state_dict(), side.optimizer.state_dict()))
        for side in twins.sides
    ]
    twins.train(batches(6, seed=2))
    for side, (weights, state) in zip(twins.sides, kept, strict=True):
        side.model.load_state_dict(weights)
        side.optimizer.load_state_dict(state)
    twins.train(batches(4, seed=3))
    assert counts()[0] == 3  # at the second step, after a rewire, after the load and one more


@pytest.mark.parametrize("what", ["parameter", "buffer", "state", "layer"])
def test_tensors_that_somebody_exchanges(what: str) -> None:
    twins = Twins()
    twins.train(batches(3))
    for side in twins.sides:
        if what == "parameter":
            side.model[9].weight.data = side.model[9].weight.data.clone().mul_(0.5)
        elif what == "buffer":
            side.model[1].running_mean = torch.ones(8)
        elif what == "state":
            state = side.optimizer.state[side.model[9].weight]
            state["momentum_buffer"] = state["momentum_buffer"] * 0.5
        else:
            side.model[2] = nn.Tanh()
    twins.train(batches(3, seed=2))
    assert counts() == (2, 4)


@pytest.mark.parametrize("cleared", [False, True])
def test_a_gradient_that_the_optimizer_does_not_clear(cleared: bool) -> None:
    make = lambda model: torch.optim.SGD(list(model.parameters())[:-2], lr=0.05)  # noqa: E731
    twins = Twins(make_optimizer=make)
    twins.train(batches(3))
    assert counts() == (1, 2)
    for side in twins.sides if cleared else ():
        side.model[9].weight.grad = None
    twins.train(batches(3, seed=2))
    assert counts() == ((2, 4) if cleared else (1, 5))


def test_gradients_that_somebody_takes_away_come_again() -> None:
    twins = Twins()
    twins.train(batches(3))
    for batch in batches(3, seed=2):
        twins.graphed.model.zero_grad()
        twins.train(iter([batch]))
    assert counts() == (1, 5)


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
