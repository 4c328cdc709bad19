"""What one process alone meets, all of them are told: none waits for another."""

from __future__ import annotations

import pytest
import torch
from helpers.parallel_training import batch, make, make_model, message_of, sgd, step, trained
from helpers.team import device
from torch import nn

from dsr_kernels.distributed import DistributedDataParallel
from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import GMP, DeepR, agreement, together
from dsr_kernels.rewiring.move import Move

EITHER = (ValueError, RuntimeError)


def write_indices(rank: int, size: int, method: str):
    training = trained(rank, size, method)
    if rank == 1:
        training.model[4].col_indices.data.copy_(training.model[4].col_indices.flip(0))
    return message_of(training.rewirer.rewire, EITHER)


@pytest.mark.parametrize("method", ["set", "deepr"])
def test_indices_that_one_process_has_written(two, method):
    first, second = two.run(write_indices, method)
    assert first.startswith("rewire: nothing was rewired, for rank 1 cannot: layer '4': ")
    assert second.startswith("layer '4': ") and second in first


def state_that_decides(rank: int, size: int):
    """A failure while it looks for what decides."""
    training = trained(rank, size, "deepr")
    if rank == 1:
        training.rewirer.signs.clear()
    return message_of(training.rewirer.rewire, (KeyError, RuntimeError))


def test_a_failure_of_a_methods_own(two):
    first, second = two.run(state_that_decides)
    assert first.startswith("rewire: nothing was rewired, for rank 1 cannot: ") and second == "'0'"


def hook_an_accumulator(rank: int, size: int, method: str):
    training = trained(rank, size, method, **({} if method == "set" else {"prune_fraction": 0.7}))
    values = training.model[0].weight_values
    node = values.view_as(values).grad_fn.next_functions[0][0] if rank == 1 else None
    message = message_of(training.rewirer.rewire)
    del node
    return message, training.rewirer.rewires, message_of(training.rewirer.rewire)


def test_an_accumulator_that_one_process_holds(two):
    (first, rewires, then), (second, others, then_too) = two.run(hook_an_accumulator, "dsr")
    assert first.startswith("rewire: nothing was rewired, for rank 1 cannot: layer '0': something")
    assert second.startswith("layer '0': its number of non-zeros cannot change from ")
    assert rewires == others == 0 and then == then_too == ""


def test_an_accumulator_may_be_held_where_lengths_stay(two):
    for message, rewires, _ in two.run(hook_an_accumulator, "set"):
        assert message == "" and rewires == 1


def start_with_written_indices(rank: int, size: int):
    model = make_model()
    if rank == 1:
        model[4].col_indices.data.copy_(model[4].col_indices.flip(0))
    return message_of(lambda: DistributedDataParallel(model), EITHER)


def test_a_start_that_one_process_cannot_make(two):
    first, second = two.run(start_with_written_indices)
    assert first.startswith("rank 1 cannot start: ") and second in first


def start_held(rank: int, size: int):
    model = make_model(seed=rank)
    layer = model[0]
    if rank == 1:
        blocks = layer.blocks - 5
        crow = layer.crow_indices.clamp(max=blocks)
        layer.replace_topology(crow, layer.col_indices[:blocks], layer.weight_values[:blocks])
    values = layer.weight_values
    node = values.view_as(values).grad_fn.next_functions[0][0] if rank == 1 else None
    message = message_of(lambda: DistributedDataParallel(model), ValueError)
    del node
    return message


def test_a_start_where_an_accumulator_is_held(two):
    for message in two.run(start_held):
        assert "rank 1 cannot take another: something holds the accumulator" in message


def deepr_settings(rank: int, size: int):
    """Its `stop` has passed in one process, which would not rewire."""
    training = trained(rank, size, "deepr", stop=10 - 10 * rank, length=10)
    return message_of(training.rewirer.step)


def test_deep_rewiring_compares_settings_in_the_first_step(two):
    for message in two.run(deepr_settings):
        assert message.startswith("rewire: expected the same schedule in all processes")


def gmp_settings(rank: int, size: int):
    """The numbers at construction decide how many weights are left."""
    model = make_model()
    if rank == 1:
        layer = model[4]
        blocks = layer.blocks - 3
        crow = layer.crow_indices.clamp(max=blocks)
        layer.replace_topology(crow, layer.col_indices[:blocks], layer.weight_values[:blocks])
    optimizer = sgd(model)
    rewirer = GMP(model, optimizer, final_sparsity=0.9, end=20, every=2)
    model.load_state_dict(make_model().state_dict())
    wrapped = DistributedDataParallel(model)
    step(wrapped, optimizer, 0, rank, size)
    return message_of(rewirer.step)


def test_numbers_that_a_method_keeps_by_layer_are_compared(two):
    for message in two.run(gmp_settings):
        assert message.startswith("rewire: expected the same initial in all processes, got {'0': ")


def wrapped_late(rank: int, size: int):
    """Steps before the model is wrapped, as of a rewirer that is resumed."""
    model = make_model()
    optimizer = sgd(model)
    rewirer = make("set", model, optimizer, seed=rank)
    rewirer.step()
    wrapped = DistributedDataParallel(model)
    step(wrapped, optimizer, 0, rank, size)
    return message_of(rewirer.step)


def test_a_model_that_is_wrapped_after_the_first_step(two):
    for message in two.run(wrapped_late):
        assert message.startswith("rewire: expected the same seed in all processes")


def integers_and_floats(rank: int, size: int):
    training = trained(rank, size)
    training.rewirer.threshold = 1 if rank else 1.0
    return message_of(training.rewirer.rewire)


def test_settings_that_are_equal_and_not_the_same(two):
    for message in two.run(integers_and_floats):
        assert "expected the same threshold in all processes, got 1.0 on rank 0 and 1 on" in message


def comparisons(rank: int, size: int):
    calls: list[int] = []
    training = trained(rank, size, "deepr", eta=0.5)
    agree = together.agree

    def counting(processes, settings, layers, *others):
        calls.append(len(layers))
        return agree(processes, settings, layers, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "agree", counting)
        for number in range(4):
            step(training.wrapped, training.optimizer, number, rank, size)
            training.rewirer.step()
        rewires = training.rewirer.rewires
        training.rewirer.rewire()
    return calls, rewires


def test_deep_rewiring_compares_once_in_a_step(two):
    for calls, rewires in two.run(comparisons):
        assert rewires == 4
        assert calls == [0] + 4 * [3] + [3]  # the settings, four steps, and a rewire by itself


def static_input(rank: int, size: int):
    """A buffer that is filled with the next batch before the rewire."""
    training = trained(rank, size, "rigl", every=2)
    training.rewirer.step()
    x, y = batch(1, rank, size)
    (training.wrapped(x) - y).square().mean().backward()
    if rank == 1:
        x.copy_(batch(2, rank, size)[0])
    return message_of(training.rewirer.step), training.rewirer.rewires


def test_an_input_that_one_process_has_overwritten(two):
    for message, rewires in two.run(static_input):
        assert message.startswith(
            "rewire: layer '0': something has written to its input or to its output's gradient on "
            "rank 1 since the backward pass"
        )
        assert rewires == 0


def undone(rank: int, size: int):
    """DeepR: a commit that fails leaves signs and weights, also of the wrong sign."""
    torch.manual_seed(0)
    model = nn.Sequential(SparseLinear(6, 5, nnz=12)).to(device())
    wrapped = DistributedDataParallel(model)
    rewirer = DeepR(wrapped, sgd(model), length=9, l1=0.0, temperature=0.0)
    with torch.no_grad():
        model[0].weight_values[:3].neg_()
    signs = rewirer.signs["0"].clone()
    make_move = Move.make

    def fails(self):
        make_move(self)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Move, "make", fails)
        message_of(rewirer.rewire, KeyboardInterrupt)
    assert rewirer.rewires == 0
    assert torch.equal(rewirer.state_dict()["signs"]["0"], signs)
    return rewirer.rewire().pruned


def test_signs_outlive_a_rewire_that_fails(two):
    assert two.run(undone) == [3, 3]


class Twins:
    """Two processes that say the same, and whose hashes differ."""

    device = torch.device("cpu")

    def gather(self, numbers):
        return torch.stack([numbers, numbers + torch.arange(len(numbers)) // 3])

    def gather_objects(self, value):
        return [value, value]

    def rank(self, index):
        return index


def test_a_difference_that_cannot_be_found_is_a_sentence_too():
    message = message_of(lambda: agreement.agree(Twins(), {"seed": 0}, [], []))
    assert message.startswith("rewire: processes differ in what decides a rewire, and not in what")
