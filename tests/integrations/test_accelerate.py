"""Accelerate's loop: an attached rewirer counts steps, and save_state has its state."""

from __future__ import annotations

import pytest
from helpers.frameworks import (
    BATCH,
    EPOCHS,
    METHODS,
    STEPS,
    Net,
    assert_alike,
    loader,
    make,
    plain,
    sgd,
)
from helpers.method_training import assert_same

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")


class Loop:
    """Of two micro-batches each step; `when` is before or after `prepare`."""

    def __init__(self, method: str, when: str) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = Net()
        optimizer = sgd(model)
        if when == "before":
            self.rewirer = make(method)(model, optimizer, STEPS)
            self.rewirer.attach()
        batches = loader(BATCH // 2)
        self.model, self.optimizer, self.batches = self.accelerator.prepare(
            model, optimizer, batches
        )
        if when == "after":
            self.rewirer = make(method)(self.model, self.optimizer, STEPS)
            self.rewirer.attach()

    def epoch(self) -> None:
        for x, y in self.batches:
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(self.model(x, y)["loss"])
                self.optimizer.step()
                self.optimizer.zero_grad()


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", METHODS)
def test_a_loop_is_the_plain_one_also_when_it_is_resumed(method, when, custom, tmp_path):
    expected, rewirer = plain(method, accumulate=2)
    whole = Loop(method, when)
    if custom:
        whole.accelerator.register_for_checkpointing(whole.rewirer)
    for epoch in range(EPOCHS):
        whole.epoch()
        if epoch == 0:
            whole.accelerator.save_state(str(tmp_path / "half"))
    assert whole.rewirer.iteration == STEPS
    assert_alike(whole.model, expected)
    resumed = Loop(method, when)
    if custom:
        resumed.accelerator.register_for_checkpointing(resumed.rewirer)
    resumed.accelerator.load_state(str(tmp_path / "half"))
    assert resumed.rewirer.iteration == STEPS // 2
    resumed.epoch()
    assert_alike(resumed.model, expected)
    assert_same(resumed.rewirer.state_dict(), rewirer.state_dict())
