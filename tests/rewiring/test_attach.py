"""An attached rewirer: the optimizer's steps count, with the bits of a loop that calls `step`."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings

import pytest
import torch
from helpers import attached
from helpers.attached import Small
from helpers.method_training import METHODS, OPTIMIZERS, assert_same
from helpers.optimizer_cases import Container, Lookahead, Planned, sgd, small_layer

from dsr_kernels.rewiring import DSR, Static

COPY = {"deepcopy": copy.deepcopy, "pickle": lambda parts: pickle.loads(pickle.dumps(parts))}


def told(reports):
    return [(r.step, r.pruned, r.layers) for r in reports]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_attached_it_does_bit_for_bit_what_explicit_steps_do(method, optimizer):
    explicit = Small(method, optimizer).train(0, 8, micro=2, explicit=True)
    attached = Small(method, optimizer)
    attached.attach()
    attached.train(0, 8, micro=2)
    assert explicit.reports and explicit.rewirer.iteration == 8
    assert told(attached.reports) == told(explicit.reports)
    assert_same(attached.state(), explicit.state())


@pytest.mark.parametrize("method", METHODS)
def test_the_optimizers_state_carries_the_rewirers(method):
    whole = Small(method)
    whole.attach()
    whole.train(0, 3)
    saved = pickle.loads(pickle.dumps((whole.model.state_dict(), whole.optimizer.state_dict())))
    resumed = Small(method)
    resumed.attach()
    resumed.train(0, 1)  # as much as another training would have left
    resumed.model.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    assert "dsr_kernels" in saved[1], "what is loaded is not changed"
    whole.train(3, 9)
    resumed.train(3, 9)
    assert whole.rewirer.rewires > 1
    assert_same(resumed.state(), whole.state())


@pytest.mark.parametrize("how", COPY)
@pytest.mark.parametrize("method", ["dsr", "rigl", "deepr"])
def test_a_copy_of_all_three_is_attached(method, how):
    original = Small(method)
    original.rewirer.attach()
    original.train(0, 3)
    twin = copy.copy(original)
    twin.model, twin.optimizer, twin.rewirer = COPY[how](original.parts)
    for one in (original, twin):
        one.train(3, 9)
    assert twin.rewirer is not original.rewirer and twin.rewirer.rewires > 1
    assert_same(twin.state(), original.state())


def test_a_deep_copy_tells_the_same_listener_and_a_copied_optimizer_nobody():
    class Log:
        def __init__(self):
            self.steps, self.lock = [], threading.Lock()  # which cannot be copied

        def tell(self, report):
            self.steps.append(report.step)

    original = Small()
    log = Log()
    original.rewirer.attach(on_rewire=log.tell)
    alone = copy.deepcopy(original.optimizer)
    assert "dsr_kernels" not in alone.state_dict()
    alone.step()
    assert original.rewirer.iteration == 0
    twin = copy.copy(original)
    twin.model, twin.optimizer, twin.rewirer = copy.deepcopy(original.parts)
    twin.train(0, 4)
    assert log.steps == [2, 4] and original.rewirer.iteration == 0


def test_the_handle_detaches_and_the_block_does():
    training = Small()
    with training.attach() as handle:
        training.train(0, 3)
        assert "dsr_kernels" in training.optimizer.state_dict()
    training.train(3, 6)
    assert training.rewirer.iteration == 3 and len(training.reports) == 1
    assert "dsr_kernels" not in training.optimizer.state_dict()
    handle.remove()
    training.rewirer.step()  # is allowed again
    with training.attach():
        handle.remove()  # is the handle of before
        training.train(6, 7)
    assert training.rewirer.iteration == 5


def test_what_deepr_has_not_reported_is_told_at_the_end():
    training = Small("deepr", report_every=100)
    with training.attach():
        training.train(0, 6)
        assert not training.reports
    assert [report.step for report in training.reports] == [6] and training.reports[0].pruned


def test_a_rewire_that_fails_raises_from_the_step_and_is_not_counted():
    training = Small("dsr", initial_threshold=0.1)
    training.attach()
    training.train(0, 1)
    training.gradients(1)
    training.model[0].weight_values.grad[0] = float("nan")
    with pytest.raises(ValueError, match=r"layer '0'.*is nan; nothing was rewired"):
        training.optimizer.step()
    assert training.rewirer.iteration == 1
    with torch.no_grad():
        training.model[0].weight_values.nan_to_num_(0.0)
        for held in training.optimizer.state.values():
            held["momentum_buffer"].nan_to_num_(0.0)
    training.train(1, 2)
    assert training.rewirer.iteration == 2 and training.rewirer.rewires == 1


def test_attaching_after_the_optimizer_was_loaded_warns():
    whole = Small()
    whole.attach()
    saved = copy.deepcopy(whole.train(0, 3).optimizer.state_dict())
    late = Small()
    late.model.load_state_dict(whole.model.state_dict())
    late.optimizer.load_state_dict(saved)  # which drops the rewirer's
    message = r"starts at iteration 0, but SGD has loaded.*attach before SGD\.load_state_dict"
    with pytest.warns(UserWarning, match=message) as seen, late.attach():
        assert late.rewirer.iteration == 0
    assert [one.filename for one in seen] == [attached.__file__]  # through its own `attach`
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with late.attach(state_in_optimizer=False):
            pass
        late.rewirer.load_state_dict(saved["dsr_kernels"])
        with late.attach():
            assert late.rewirer.iteration == 3
        Small("dsr").train(0, 1).rewirer.attach()  # a state that was not loaded


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options"),
    [("dsr", {}), ("deepr", {}), ("deepr", {"eta": 0.0})],  # none changes sign
)
def test_an_explicit_step_and_a_second_attach_are_refused(method, options):
    training = Small(method, **options)
    training.attach()
    with pytest.raises(RuntimeError, match=r"SGD\.step\(\) calls it: an iteration would count twi"):
        training.rewirer.step()
    with pytest.raises(RuntimeError, match="attached to SGD already"):
        training.attach()
    training.train(0, 1)
    assert training.rewirer.iteration == 1


class Dressed(Lookahead):
    """Has taken over all that its inner optimizer has, the lists of its hooks among it."""

    def __init__(self, inner):
        vars(self).update(vars(inner))
        super().__init__(inner)


def test_steps_that_cannot_be_heard_are_refused():
    layer = small_layer()
    with pytest.raises(ValueError, match="got one without"):
        Static(layer).attach()
    inner = sgd(layer)
    for outer in (Lookahead(inner), Container([inner]), Dressed(inner)):
        rewirer = Planned(layer, outer, every=100)
        with pytest.raises(ValueError, match=r"is around SGD.*pass the SGD as `after`"):
            rewirer.attach()
        handle = rewirer.attach(after=inner)
        with handle:
            inner.step()
        assert rewirer.iteration == 1
        with pytest.raises(ValueError, match=f"after: steps of {type(outer).__name__} call no"):
            Planned(layer, outer).attach(after=outer)
    with pytest.raises(ValueError, match="after: expected an optimizer of the rewirer, SGD, got A"):
        Static(layer, inner).attach(after=torch.optim.Adam(layer.parameters()))


def test_states_without_the_rewirers_are_refused_before_anything_is_loaded():
    training = Small()
    plain = training.train(0, 3, explicit=True).optimizer.state_dict()
    training.attach()
    training.train(3, 4)
    before = training.state()
    with pytest.raises(ValueError, match=r"under 'dsr_kernels', got the keys.*nothing was loaded"):
        training.optimizer.load_state_dict(plain)
    other = Small("set")
    other.attach()
    with pytest.raises(ValueError, match="expected method 'DSR', got 'SET'"):
        training.optimizer.load_state_dict(other.optimizer.state_dict())
    short = training.optimizer.state_dict() | {"param_groups": []}
    short["dsr_kernels"]["iteration"] += 7
    with pytest.raises(ValueError, match="different number of parameter groups"):  # torch's words
        training.optimizer.load_state_dict(short)
    assert_same(training.state(), before)
    plain_optimizer = OPTIMIZERS["momentum"](training.model.parameters())
    plain_optimizer.load_state_dict(training.optimizer.state_dict())  # who rewires no more


def test_two_rewirers_of_one_optimizer_keep_their_states_apart():
    training = Small()
    training.attach()
    other = DSR(training.model[0], training.optimizer, every=2)
    with pytest.raises(ValueError, match="holds another rewirer's already"):
        other.attach()
    other.attach(state_in_optimizer=False)
    training.train(0, 1)
    assert training.optimizer.state_dict()["dsr_kernels"]["iteration"] == 1 == other.iteration
