"""Which steps an attached rewirer counts."""

from __future__ import annotations

import pytest
import torch
from helpers.attached import Small
from helpers.optimizer_cases import SAM, Accelerated, Planned, sgd, small_layer
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import DSR, Static


def test_a_step_with_a_closure_counts_once():
    training = Small("rigl")
    training.attach()
    for i in range(4):
        training.optimizer.step(lambda i=i: training.gradients(i))
    assert training.rewirer.iteration == 4 and training.rewirer.rewires == 2


def scaled_steps(training):
    """Four, of which the second has an infinite gradient."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    for i in range(4):
        training.gradients(i)
        if i == 1:
            training.model[0].weight_values.grad[0] = float("inf")
        scaler.step(training.optimizer)
        scaler.update()


def test_a_step_that_a_grad_scaler_leaves_out_does_not_count():
    training = Small()
    training.attach()
    scaled_steps(training)
    assert training.rewirer.iteration == 3


def test_nor_does_one_that_a_fused_optimizer_leaves_out_itself():
    """The scaler calls its step in any case, with `found_inf` for the kernel to look at."""
    training = Small()
    training.optimizer = torch.optim.SGD(training.model.parameters(), lr=0.1, fused=True)
    rewirer = DSR(training.model, training.optimizer, every=2)
    rewirer.attach()
    scaled_steps(training)
    assert rewirer.iteration == 3


def test_a_checkpoint_that_has_state_made_by_a_step_does_not_count():
    training = Small("dsr", "adam")
    training.attach()
    state = get_optimizer_state_dict(training.model, training.optimizer)
    assert training.rewirer.iteration == 0
    with pytest.raises(ValueError, match="expected the state of the attached rewirer"):
        set_optimizer_state_dict(training.model, training.optimizer, state)  # which dropped it
    training.optimizer.param_groups[0]["lr"] = 0.0  # a warm-up may begin so
    training.train(0, 1)
    assert training.rewirer.iteration == 1


def test_steps_with_a_learning_rate_of_nothing_count():
    training = Small("dsr", "adam")
    training.optimizer.param_groups[0]["lr"] = 0.0
    training.attach()
    training.optimizer.step()  # has no gradient, where a checkpoint's has some of 0
    assert training.rewirer.iteration == 1
    training.train(0, 1)
    for parameter in training.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    training.optimizer.step()  # has state already
    assert training.rewirer.iteration == 3


def test_a_compiled_step_counts():
    training = Small("dsr", every=3)
    training.attach()
    training.optimizer.step = torch.compile(training.optimizer.step, backend="eager")
    training.train(0, 7)
    assert training.rewirer.iteration == 7 and training.rewirer.rewires == 2


def test_a_step_that_is_captured_is_refused(monkeypatch):
    training = Small()
    training.attach()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"captured in a CUDA graph.*after each replay"):
        training.train(0, 1)
    assert training.rewirer.iteration == 0


def sam_step(self, closure=None):
    """As the usual SAM: at the end the inner step, and then something of its own."""
    self.base_optimizer.step()
    self.after.append(self.rewirer.iteration)


def test_of_an_optimizer_around_another_the_outer_step_ends_first():
    layer = small_layer()
    kind = type("Outer", (SAM,), {"step": sam_step, "after": []})
    outer = kind(sgd(layer))
    outer.rewirer = rewirer = Planned(layer, outer, every=1)
    rewirer.attach()
    for _ in range(2):
        layer.weight_values.grad = torch.zeros_like(layer.weight_values)
        outer.step()
    assert kind.after == [0, 1] and rewirer.iteration == 2
    outer.base_optimizer.step()  # `second_step` calls it so
    assert rewirer.iteration == 3


def test_a_step_that_raised_leaves_nothing_behind():
    layer = small_layer()
    todo = []

    def step(self, closure=None):
        for part in todo:
            part()

    outer = type("Outer", (SAM,), {"step": step})(sgd(layer))
    rewirer = Planned(layer, outer, every=100)
    rewirer.attach()
    inner = outer.base_optimizer.step
    todo[:] = [inner, lambda: 1 // 0]
    with pytest.raises(ZeroDivisionError):
        outer.step()
    todo[:] = []
    outer.step()  # without the inner one
    assert rewirer.iteration == 0
    todo[:] = [inner]
    outer.step()
    assert rewirer.iteration == 1


class Derived(torch.optim.SGD):
    """Torch calls its hooks twice: once SGD was built, its own step calls them, too."""

    def __init__(self, *args, **more):
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        super().__init__(*args, **more)
        self.seen = []

    def step(self, closure=None):
        if self.seen is None:
            raise ZeroDivisionError
        loss = super().step(closure)
        self.seen.append(self.rewirer.iteration)
        return loss


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_that_calls_its_parents_counts_once_and_after_it(compiled):
    training = Small()
    training.optimizer = Derived(training.model.parameters(), lr=0.1)
    training.rewirer = DSR(training.model, training.optimizer, every=2)
    training.optimizer.rewirer = training.rewirer
    training.attach()
    optimizer = training.optimizer
    if compiled:
        optimizer.step = torch.compile(optimizer.step, backend="eager")
    training.train(0, 4)
    assert optimizer.seen == [0, 1, 2, 3]
    assert training.rewirer.iteration == 4 and training.rewirer.rewires == 2
    optimizer.seen = None
    with pytest.raises(ZeroDivisionError):
        training.train(4, 5)
    optimizer.seen = []
    training.train(4, 6)
    assert optimizer.seen == [4, 5] and training.rewirer.iteration == 6


def test_after_an_outer_step_that_raised_inner_ones_count():
    layer = small_layer()
    inner = sgd(layer)

    def step(self, closure=None):
        raise ZeroDivisionError

    outer = type("Outer", (SAM,), {"step": step})(inner)
    rewirer = Planned(layer, outer, every=100)
    rewirer.attach()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as held:  # and its frames with it
            outer.step()
    for _ in range(3):
        inner.step()
    assert held and rewirer.iteration == 3


def test_a_parents_step_that_raised_within_is_forgotten():
    class Again(torch.optim.SGD):
        def step(self, closure=None):
            with pytest.raises(ZeroDivisionError):
                super().step(lambda: 1 // 0)

    layer = small_layer()
    sgd(layer)
    optimizer = Again(layer.parameters(), lr=0.1)
    rewirer = Planned(layer, optimizer, every=100)
    rewirer.attach()
    for _ in range(3):
        optimizer.step()
    assert rewirer.iteration == 3


def test_accelerates_wrapper_is_looked_through():
    layer = small_layer()
    kind = type("AcceleratedOptimizer", (Accelerated,), {"__module__": "accelerate.optimizer"})
    outer = kind(sgd(layer))
    rewirer = Planned(layer, outer, every=100)
    rewirer.attach()
    outer.step()
    assert rewirer.iteration == 1


def test_of_several_optimizers_the_one_that_holds_all_layers_counts_or_the_named_one():
    first, second = SparseLinear(6, 2, nnz=6), SparseLinear(2, 2, nnz=2, bias=False)
    model = nn.Sequential(first, second)
    values = [layer.weight_values for layer in model]
    sparse, rest = torch.optim.SGD(values, lr=0.1), torch.optim.SGD([first.bias], lr=0.1)
    rewirer = Static(model, [rest, sparse])
    rewirer.attach()
    rest.step()
    assert rewirer.iteration == 0
    sparse.step()
    assert rewirer.iteration == 1
    apart = [torch.optim.SGD([one], lr=0.1) for one in values]
    rewirer = Static(model, apart)
    with pytest.raises(ValueError, match=r"after: expected the optimizer that steps last.*SGD and"):
        rewirer.attach()
    rewirer.attach(after=apart[1])
    for one in apart:
        one.step()
    assert rewirer.iteration == 1
