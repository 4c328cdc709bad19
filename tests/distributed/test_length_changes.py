"""Torch's reducer after parameters have changed their lengths, in whatever way and state."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from helpers.parallel_training import batch, make_model, sgd, step
from helpers.team import device
from torch import nn

import dsr_kernels
from dsr_kernels.distributed import DistributedDataParallel
from dsr_kernels.nn import SparseLinear, SparseModule


def shrink(layer: SparseModule, by: int = 5) -> None:
    """Takes the last non-zeros."""
    blocks = layer.blocks - by
    crow, values = layer.crow_indices.clamp(max=blocks), layer.weight_values.detach()
    layer.replace_topology(crow, layer.col_indices[:blocks].clone(), values[:blocks].clone())


def check_gradients(wrapped: nn.Module, rank: int, size: int) -> None:
    """Several passes give the whole batch's gradient, whatever buckets torch makes."""
    model = wrapped.module
    alone = copy.deepcopy(model)
    for number in range(3):
        model.zero_grad(), alone.zero_grad()
        x, y = batch(number, 0, 1)
        (alone(x) - y).square().mean().backward()
        x, y = batch(number, rank, size)
        (wrapped(x) - y).square().mean().backward()
        for (name, own), other in zip(model.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-9, atol=1e-11, msg=name)


def trained(rank: int, size: int, **options) -> DistributedDataParallel:
    """After torch has put its buckets in the order of the backward pass."""
    wrapped = DistributedDataParallel(make_model(), **options)
    optimizer = sgd(wrapped.module)
    for number in range(3):
        step(wrapped, optimizer, number, rank, size)
    return wrapped


SEVERAL = {"bucket_cap_mb": 0.0005}  # buckets, so that their order matters
OPTIONS = {
    "plain": SEVERAL,
    "unused": SEVERAL | {"find_unused_parameters": True},
    "static": SEVERAL | {"static_graph": True},
    "views": SEVERAL | {"gradient_as_bucket_view": True},
}


def fit(rank: int, size: int):
    wrapped = trained(rank, size)
    other = copy.deepcopy(wrapped.module)
    shrink(other[0])
    dsr_kernels.fit_to(wrapped.module, other.state_dict())
    wrapped.module.load_state_dict(other.state_dict())
    check_gradients(wrapped, rank, size)

    plain = nn.parallel.DistributedDataParallel(make_model())
    before = copy.deepcopy(plain.module.state_dict())
    with pytest.raises(RuntimeError, match=r"layer '0': its number .* would no longer average"):
        dsr_kernels.fit_to(plain.module, other.state_dict())
    torch.testing.assert_close(plain.module.state_dict(), before, rtol=0, atol=0)


def test_fit_to_tells_the_wrapper(two):
    two.run(fit)


def frozen(rank: int, size: int, options: dict, part: bool):
    """As a GAN's discriminator is, while its generator trains through it."""
    wrapped = trained(rank, size, **options)
    module = wrapped.module
    shrink(module[0])
    (module[4] if part else module).requires_grad_(False)
    module.zero_grad()
    x = batch(0, rank, size)[0].requires_grad_()
    wrapped(x).sum().backward()
    assert x.grad is not None and module[4].weight_values.grad is None
    module.requires_grad_(True)
    check_gradients(wrapped, rank, size)


@pytest.mark.parametrize(("name", "part"), [("plain", False), ("static", False), ("unused", True)])
def test_what_is_frozen_for_a_moment_is_averaged_again(two, name, part):
    two.run(frozen, OPTIONS[name], part)


def interrupted(rank: int, size: int):
    wrapped = trained(rank, size)
    shrink(wrapped.module[0])

    def fails(*args):
        raise KeyboardInterrupt

    trains = [parameter.requires_grad for parameter in wrapped.parameters()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "Reducer", fails)
        with pytest.raises(KeyboardInterrupt):
            wrapped(batch(0, rank, size)[0])
    assert trains == [parameter.requires_grad for parameter in wrapped.parameters()]
    check_gradients(wrapped, rank, size)


def test_a_new_reducer_that_fails_leaves_the_wrapper_as_it_was(two):
    two.run(interrupted)


def there_and_back(rank: int, size: int, options: dict, alone: bool):
    """Best weights are loaded, evaluated, and the present ones loaded again, twice."""
    wrapped = trained(rank, size, **options)
    module = wrapped.module
    present, best = copy.deepcopy(module.state_dict()), copy.deepcopy(module)
    shrink(best[0]), shrink(best[4], by=2)
    for _ in range(2):
        if rank == 0 or not alone:
            module.load_state_dict(best.state_dict())
            with torch.no_grad():
                x = batch(0, rank, size)[0]
                torch.testing.assert_close(wrapped(x), best(x), rtol=0, atol=0)
            module.load_state_dict(present)
        check_gradients(wrapped, rank, size)
    shrink(module[2])
    check_gradients(wrapped, rank, size)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_one_process_may_evaluate_other_weights(two, options, alone):
    two.run(there_and_back, options, alone)


def static_within_no_sync(rank: int, size: int):
    """Torch's static graph cannot begin within no_sync; the old reducer stays until after it."""
    wrapped = trained(rank, size, static_graph=True)
    shrink(wrapped.module[0])
    x, y = batch(0, rank, size)
    with wrapped.no_sync():
        (wrapped(x) - y).square().mean().backward()
    (wrapped(x) - y).square().mean().backward()
    check_gradients(wrapped, rank, size)


def test_a_static_graph_after_no_sync(two):
    two.run(static_within_no_sync)


def set_since(rank: int, size: int):
    """What torch's wrapper was told after it was built."""
    wrapped = DistributedDataParallel(make_model())
    wrapped.forward_sync_buffers = False
    wrapped._set_static_graph()
    check_gradients(wrapped, rank, size)
    group = dist.new_group(list(range(size)))
    wrapped._update_process_group(group)
    shrink(wrapped.module[0])
    check_gradients(wrapped, rank, size)
    assert wrapped.static_graph and wrapped.process_group is group
    assert not wrapped.forward_sync_buffers
    assert wrapped._get_ddp_logging_data()["static_graph"]


def test_what_was_set_since_stays(two):
    two.run(set_since)


def builtin_hook(rank: int, size: int):
    wrapped = DistributedDataParallel(make_model(dtype=torch.float32))
    wrapped._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS)
    for _ in range(2):
        x, y = batch(0, rank, size, torch.float32)
        (wrapped(x) - y).square().mean().backward()
        for parameter in wrapped.parameters():
            assert torch.equal(parameter.grad, parameter.grad.half().float())
        wrapped.zero_grad()
        shrink(wrapped.module[0])
    hooked = copy.deepcopy(wrapped)
    (hooked(x) - y).square().mean().backward()
    gradient = hooked.module[6].weight.grad
    assert torch.equal(gradient, gradient.half().float())


def test_a_builtin_communication_hook_stays(two):
    two.run(builtin_hook)


def copied(rank: int, size: int):
    """Part of the model is frozen when the copy is made, and its static graph begins anew."""
    wrapped = trained(rank, size, static_graph=True)
    wrapped.module[4].requires_grad_(False)
    other = copy.deepcopy(wrapped)
    wrapped.module.requires_grad_(True), other.module.requires_grad_(True)
    for one in (other, wrapped):
        check_gradients(one, rank, size)
        shrink(one.module[0])
        check_gradients(one, rank, size)


def test_copies(two):
    two.run(copied)


def shared_indices(rank: int, size: int):
    """Two layers with the same index tensors, until one of them gets others."""
    model = nn.Sequential(SparseLinear(6, 6, nnz=12), SparseLinear(6, 6, nnz=12)).to(device())
    for name in ("crow_indices", "col_indices"):
        setattr(model[1], name, getattr(model[0], name))
    wrapped = DistributedDataParallel(model)
    shrink(model[1])
    wrapped(torch.randn(2, 6, device=device())).sum().backward()
    assert not wrapped.modules_buffers


def test_index_tensors_that_layers_share_are_not_sent_either(two):
    two.run(shared_indices)
