"""What torch's DistributedDataParallel can, after rewires that change the sizes of parameters."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from helpers.parallel_training import (
    assert_as_alone,
    assert_equal,
    batch,
    make,
    make_model,
    sgd,
    state_of,
    step,
    train,
)
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dsr_kernels.distributed import DistributedDataParallel
from dsr_kernels.nn import SparseLinear

OPTIONS = {
    "unused": {"find_unused_parameters": True},
    "views": {"gradient_as_bucket_view": True},
    "static": {"static_graph": True},
    "buckets": {"bucket_cap_mb": 0.0005},
    "buffers": {"broadcast_buffers": False},
}


def with_options(rank: int, size: int, options: dict):
    return train("dsr", 30, rank, size, **options)


@pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_of_torchs(two, options):
    states = two.run(with_options, options)
    assert_equal(*states, exactly=True)
    assert_equal(states[0], train("dsr", 30))


def two_groups(rank: int, size: int):
    """Four processes: two groups of two, each with a model of its own."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    return train("rigl", 20, rank % 2, 2, process_group=groups[rank // 2])


def test_a_process_group_of_some_processes(four):
    states = four.run(two_groups)
    for state in states[1:]:
        assert_equal(states[0], state, exactly=True)
    assert_equal(states[0], train("rigl", 20))


def in_quarters(rank: int, size: int):
    return train("snfs", 20, rank, size)


def test_four_processes(four):
    states = four.run(in_quarters)
    for state in states[1:]:
        assert_equal(states[0], state, exactly=True)
    assert_equal(states[0], train("snfs", 20))


def accumulate(rank: int, size: int):
    """Two batches a step, the first one within no_sync, with clipped gradients."""
    model = make_model()
    wrapped = DistributedDataParallel(model) if size > 1 else model
    optimizer = sgd(model)
    rewirer = make("dsr", wrapped, optimizer)
    for number in range(30):
        optimizer.zero_grad()
        for part in range(2):
            x, y = batch(2 * number + part, rank, size)
            quiet = size > 1 and part == 0
            with wrapped.no_sync() if quiet else torch.enable_grad():
                (wrapped(x) - y).square().mean().backward()
        nn.utils.clip_grad_norm_(wrapped.parameters(), 0.5)
        optimizer.step()
        rewirer.step()
    return state_of(model)


def test_accumulation_and_clipping(two):
    assert_as_alone(two, accumulate)


def rewire_within_no_sync(rank: int, size: int):
    model = make_model()
    wrapped = DistributedDataParallel(model)
    rewirer = make("dsr", wrapped, sgd(model))
    x, y = batch(0, rank, size)
    with wrapped.no_sync():
        (wrapped(x) - y).square().mean().backward()
        rewirer.rewire()
        model.zero_grad()
        (wrapped(x) - y).square().mean().backward()
        assert not wrapped.require_backward_grad_sync
        own = model[0].weight_values.grad.clone()
    (wrapped(x) - y).square().mean().backward()
    return own.cpu(), model[0].weight_values.grad.cpu()


def test_no_sync_goes_on_after_a_rewire(two):
    (own, total), (other, same) = two.run(rewire_within_no_sync)
    assert not torch.equal(own, other)
    torch.testing.assert_close(total, own + other)  # accumulated, and then the mean of both sums
    assert torch.equal(total, same)


def compressed(rank: int, size: int):
    model = make_model(dtype=torch.float32)
    wrapped = DistributedDataParallel(model)
    calls = []

    def hook(state, bucket):
        calls.append(bucket.buffer().numel())
        return bf16_compress_hook(state, bucket)

    wrapped.register_comm_hook(None, hook)
    wrapped.register_forward_hook(lambda *_: calls.append("forward"))
    optimizer = sgd(model)
    rewirer = make("dsr", wrapped, optimizer)
    for number in range(12):
        step(wrapped.train(number % 2 == 0), optimizer, number, rank, size)
        rewirer.step()
        assert wrapped.training == (number % 2 == 0)
    del calls[:]
    step(wrapped, optimizer, 99, rank, size)
    assert calls[0] == "forward" and sum(calls[1:]) == sum(p.numel() for p in model.parameters())
    gradient = model[0].weight_values.grad
    assert torch.equal(gradient, gradient.bfloat16().float())
    return state_of(model)


def test_hooks_and_compressed_gradients_stay(two):
    assert_equal(*two.run(compressed), exactly=True)


def compiled(rank: int, size: int):
    torch._dynamo.reset()
    model = make_model()
    if size > 1:
        wrapped = DistributedDataParallel(torch.compile(model, backend="aot_eager"))
    else:
        wrapped = model
    optimizer = sgd(model)
    rewirer = make("dsr", wrapped, optimizer, every=3)
    for number in range(10):
        step(wrapped, optimizer, number, rank, size)
        rewirer.step()
    return state_of(model)


def test_a_compiled_module(two):
    assert_as_alone(two, compiled)


def scaled(rank: int, size: int):
    """Under autocast, with a loss scale, RigL."""
    model = make_model(dtype=torch.float32)
    wrapped = DistributedDataParallel(model)
    optimizer = sgd(model)
    rewirer = make("rigl", wrapped, optimizer, every=2)
    kind = next(model.parameters()).device.type
    scaler = torch.amp.GradScaler(kind)
    for number in range(7):
        x, y = batch(number, rank, size, torch.float32)
        optimizer.zero_grad()
        with torch.autocast(kind, torch.bfloat16):
            loss = (wrapped(x) - y).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        rewirer.step()
    return state_of(model), rewirer.rewires


def test_autocast_and_a_loss_scale(two):
    (one, rewires), (other, _) = two.run(scaled)
    assert rewires == 3
    assert_equal(one, other, exactly=True)


def emptied(rank: int, size: int):
    """A layer loses all of its values, then has some again."""
    model = make_model()
    wrapped = DistributedDataParallel(model) if size > 1 else model
    optimizer = sgd(model)
    layer = model[4]
    assert isinstance(layer, SparseLinear)
    index = {"dtype": torch.int32, "device": layer.col_indices.device}
    none, some = torch.zeros(13, **index), torch.arange(13, **index)
    values = torch.zeros(12, dtype=torch.float64, device=none.device)
    make("set", wrapped, optimizer)  # moves the optimizer's state
    for number in range(9):
        step(wrapped, optimizer, number, rank, size)
        if number == 2:
            layer.replace_topology(none, some[:0], values[:0])
        if number == 5:
            layer.replace_topology(some, some[:12], values)
    assert layer.weight_values.count_nonzero() > 2
    return state_of(model)


def test_a_layer_becomes_empty_and_is_filled_again(two):
    assert_as_alone(two, emptied)


def with_average(rank: int, size: int):
    model = make_model()
    wrapped = DistributedDataParallel(model) if size > 1 else model
    optimizer = sgd(model)
    rewirer = make("dsr", wrapped, optimizer)
    average = AveragedModel(wrapped, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    rewirer.follow(average)
    for number in range(20):
        step(wrapped, optimizer, number, rank, size)
        rewirer.step()
        average.update_parameters(wrapped)
    return {key.removeprefix("module."): t for key, t in state_of(average.module).items()}


def test_averages_follow(two):
    assert_as_alone(two, with_average)


def keys(rank: int, size: int):
    torch.manual_seed(0)
    model = nn.Sequential(SparseLinear(4, 3), nn.BatchNorm1d(3))
    wrapped = DistributedDataParallel(model.to(next(make_model().parameters()).device))
    plain = nn.parallel.DistributedDataParallel(model)
    assert isinstance(wrapped, nn.parallel.DistributedDataParallel) and wrapped.module is model
    return list(wrapped.state_dict()), list(plain.state_dict())


def test_the_keys_of_a_state_are_torchs(two):
    for own, torchs in two.run(keys):
        assert own == torchs and own[0] == "module.0.weight_values"


def other_seeds(rank: int, size: int):
    """Each process draws patterns and weights of its own, and one also has other numbers."""
    model = make_model(seed=rank)
    if rank == 1:
        layer = model[0]
        blocks = layer.blocks - 5
        crow = layer.crow_indices.clamp(max=blocks)
        layer.replace_topology(crow, layer.col_indices[:blocks], layer.weight_values[:blocks])
    before = state_of(model)
    wrapped = DistributedDataParallel(model)
    started = state_of(model)
    optimizer = sgd(model)
    rewirer = make("dsr", wrapped, optimizer)
    for number in range(11):
        step(wrapped, optimizer, number, rank, size)
        rewirer.step()
    return before, started, state_of(model)


def test_the_first_process_gives_patterns_and_values(two):
    (first, started, ended), (other, started_too, ended_too) = two.run(other_seeds)
    assert first["0.weight_values"].shape != other["0.weight_values"].shape
    assert_equal(first, started, exactly=True)
    assert_equal(started, started_too, exactly=True)
    assert_equal(ended, ended_too, exactly=True)


def indices_written(rank: int, size: int):
    """Index tensors are not sent at each forward pass, other buffers are."""
    model = nn.Sequential(SparseLinear(4, 3), nn.BatchNorm1d(3)).to(
        next(make_model().parameters()).device
    )
    wrapped = DistributedDataParallel(model)
    x = torch.full((2, 4), float(rank), device=model[0].bias.device)
    wrapped(x), wrapped(x)
    assert not hasattr(model, "_ddp_params_and_buffers_to_ignore")
    return [buffer.cpu() for buffer in wrapped.modules_buffers]


def test_patterns_are_not_sent_at_each_forward_pass(two):
    for buffers in two.run(indices_written):
        assert [buffer.dtype for buffer in buffers] == [torch.float32, torch.float32, torch.int64]
