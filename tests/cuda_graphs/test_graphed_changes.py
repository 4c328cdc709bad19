"""What a graph has taken as given changes: the next steps are still those of a plain loop."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from helpers.graph_stand_in import Graph
from helpers.graphed_twins import Twins, batches, network, sgd
from torch import nn

from dsr_kernels.cuda import replayer
from dsr_kernels.rewiring import DSR

dsr = partial(DSR, prune_fraction=0.2, every=5)


def counts() -> tuple[int, int]:
    return Graph.captures, Graph.replays


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


def test_numbers_of_modules() -> None:
    """They are read in Python: a dropout's p, batch norm's momentum."""
    twins = Twins(network(dropout=0.1))
    twins.train(batches(3))
    for side in twins.sides:
        side.model[3].p = 0.5
    twins.train(batches(3, seed=2))
    assert counts() == (2, 4)
    for side in twins.sides:
        side.model[1].momentum = 0.5
    twins.train(batches(3, seed=3))
    assert counts() == (3, 6)


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
