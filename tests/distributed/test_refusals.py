"""What cannot be right with several processes is refused in one sentence, and changes nothing."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from helpers.parallel_training import (
    METHODS,
    assert_as_alone,
    assert_equal,
    batch,
    make,
    make_model,
    sgd,
    state_of,
    step,
)
from helpers.team import device
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.algorithms.join import Join, _JoinConfig
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import distribute_module
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from dsr_kernels.distributed import DistributedDataParallel
from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import SET, Static


def refused(kind: type[Exception], call) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    return "not refused"


PLAIN = (
    "layer '0' is inside a torch.nn.parallel.DistributedDataParallel, which would no longer "
    "average its gradients after a rewire, and whose processes could rewire differently; wrap the "
    "model in dsr_kernels.distributed.DistributedDataParallel instead"
)


def plain_wrapper_first(rank: int, size: int):
    model = make_model()
    wrapped = nn.parallel.DistributedDataParallel(model)
    return [
        refused(ValueError, lambda m=method, given=given: make(m, given, sgd(model)))
        for method in METHODS
        for given in (wrapped, model)
    ]


def test_a_rewirer_of_a_model_in_torchs_wrapper_is_refused(two):
    for messages in two.run(plain_wrapper_first):
        assert all(message.startswith(PLAIN) for message in messages)


def plain_wrapper_second(rank: int, size: int, find_unused_parameters: bool):
    model = make_model()
    optimizer = sgd(model)
    rewirer = make("dsr", model, optimizer)
    rewirers = [rewirer, make("rigl", model, optimizer, every=1)]
    wrapped = nn.parallel.DistributedDataParallel(
        model, find_unused_parameters=find_unused_parameters
    )
    x, y = batch(0, rank, size)
    (wrapped(x) - y).square().mean()
    before = state_of(model)
    messages = [refused(ValueError, one.step) for one in rewirers]
    messages.append(refused(ValueError, rewirer.rewire))
    assert rewirer.iteration == rewirer.rewires == 0
    assert_equal(before, state_of(model), exactly=True)
    return messages


@pytest.mark.parametrize("unused", [False, True])
def test_a_rewire_in_torchs_wrapper_is_refused(two, unused):
    for messages in two.run(plain_wrapper_second, unused):
        assert all(message.startswith(PLAIN) for message in messages)


def copied_wrapper(rank: int, size: int):
    """No hook on modules sees a copy being made."""
    model = copy.deepcopy(nn.parallel.DistributedDataParallel(make_model()))
    average = AveragedModel(nn.parallel.DistributedDataParallel(make_model()))
    restored = nn.parallel.DistributedDataParallel(make_model())
    restored = pickle.loads(pickle.dumps(restored))
    return [
        refused(ValueError, lambda one=one: make("set", one, sgd(one)))
        for one in (model, average, restored)
    ]


def test_copies_of_torchs_wrapper_are_refused(two):
    for messages in two.run(copied_wrapper):
        assert all(message.startswith(PLAIN) for message in messages)


def fixed_pattern(rank: int, size: int):
    """Under torch's own wrapper, where nothing rewires."""
    model = make_model()
    wrapped, optimizer = nn.parallel.DistributedDataParallel(model), sgd(model)
    rewirer = Static(wrapped, optimizer)
    for number in range(3):
        step(wrapped, optimizer, number, rank, size)
        rewirer.step()
        rewirer.load_state_dict(rewirer.state_dict())
    return state_of(model)


def test_a_fixed_pattern_trains_in_torchs_wrapper(two):
    assert_equal(*two.run(fixed_pattern), exactly=True)


def by_hand(rank: int, size: int):
    """Gradients averaged by the loop itself."""
    model = make_model()
    optimizer = sgd(model)
    rewirer = make("dsr", model, optimizer)
    for number in range(12):
        x, y = batch(number, rank, size)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= size
        optimizer.step()
        rewirer.step()
    return state_of(model), rewirer.rewires


def test_who_averages_by_hand_is_not_refused(two):
    (one, rewires), (other, _) = two.run(by_hand)
    assert rewires == 2
    assert_equal(one, other, exactly=True)


class OwnPowerSGD(PowerSGDState):
    pass


def arguments(rank: int, size: int):
    model = make_model()
    mesh = init_device_mesh(device().type, (size,))
    messages = [
        refused(ValueError, lambda given=given: DistributedDataParallel(model, **given))
        for given in (
            {"mixed_precision": object()},
            {"device_mesh": mesh},
            {
                "delay_all_reduce_named_params": [("0.bias", model[0].bias)],
                "param_to_hook_all_reduce": model[6].bias,
            },
        )
    ]
    wrapped = DistributedDataParallel(model)
    local = PostLocalSGDState(None, None, 5)
    hooks = [(OwnPowerSGD(None), powerSGD_hook), (local, post_localSGD_hook)]
    for hook in hooks:
        messages.append(refused(ValueError, lambda hook=hook: wrapped.register_comm_hook(*hook)))
    fused = torch.optim.SGD
    messages.append(refused(ValueError, lambda: wrapped._register_fused_optim(fused, 0.1)))
    x = batch(0, rank, size)[0]
    with wrapped.join(enable=False), Join([wrapped], enable=False):
        wrapped(x)
    messages.append(refused(NotImplementedError, lambda: wrapped.join()))
    with (joined := Join([wrapped])):
        messages.append(refused(NotImplementedError, lambda: wrapped(x)))
        joined._enable = False  # so that it does not wait at its end
    wrapped._join_config = _JoinConfig.construct_disabled_join_config()
    torch._dynamo.config.optimize_ddp = "python_reducer"
    try:
        messages.append(refused(ValueError, lambda: DistributedDataParallel(model)))
    finally:
        torch._dynamo.config.optimize_ddp = True
    model[6].bias._in_backward_optimizers = []
    messages.append(refused(ValueError, lambda: DistributedDataParallel(model)))
    return messages


REFUSED = (
    "mixed_precision: a DistributedDataParallel that follows rewires cannot have it; use torch.",
    "device_mesh: a DistributedDataParallel that follows rewires cannot have it; give process_",
    "delay_all_reduce_named_params: a DistributedDataParallel that follows rewires cannot have it",
    "hook: PowerSGD keeps an error for each bucket, whose size changes in a rewire; use bf16_",
    "hook: post-local SGD lets the weights of processes differ, and a rewire needs the same ones",
    "module: a parameter has its optimizer in the backward pass (_register_fused_optim), so no",
    "join: a process that has run out of batches would not rewire with the others; give all",
    "join: a process that has run out of batches would not rewire with the others; give all",
    "torch._dynamo.config.optimize_ddp: expected True or False, got 'python_reducer'",
    "module: a parameter has its optimizer in the backward pass",
)


def test_what_cannot_follow_rewires_is_refused(two):
    for messages in two.run(arguments):
        for message, expected in zip(messages, REFUSED, strict=True):
            assert message.startswith(expected)


def other_models(rank: int, size: int, which: str):
    torch.manual_seed(rank)
    shape = (8, 6 if which == "shape" and rank else 5)
    model = nn.Sequential(nn.Linear(2, 8), SparseLinear(*shape, nnz=12))
    if which == "missing" and rank:
        model = model[:1]
    if which == "pruned":
        prune.identity(model[1], "weight_values")
    return refused(ValueError, lambda: DistributedDataParallel(model.to(device())))


def test_processes_with_other_layers_are_refused(two):
    for message in two.run(other_models, "shape"):
        assert message == (
            "layer '1': expected the same sparse layers in all processes, but it is of shape "
            "(5, 8) on rank 0 and of shape (6, 8) on rank 1"
        )
    for message in two.run(other_models, "missing"):
        assert message.endswith("but it is of shape (5, 8) on rank 0 and not there on rank 1")
    for message in two.run(other_models, "pruned"):
        assert message.startswith(
            "layer '1': its pattern differs between processes, and rank 0 cannot take another: "
        )


PARTS = (
    "layer '0': its values are a DTensor (fully_shard, tensor parallelism), of which a rewire "
    "would reach a part only; use dsr_kernels.distributed.DistributedDataParallel"
)


def in_parts(rank: int, size: int):
    mesh = init_device_mesh(device().type, (size,))
    model = make_model(dtype=torch.float32)
    optimizer = sgd(model)
    rewirer = SET(model, optimizer)
    fully_shard(model, mesh=mesh)
    messages = [refused(ValueError, call) for call in (rewirer.step, rewirer.rewire)]
    messages.append(refused(ValueError, lambda: SET(model, sgd(model))))
    assert rewirer.iteration == rewirer.rewires == 0
    split = make_model(dtype=torch.float32)
    distribute_module(split, mesh)
    messages.append(refused(ValueError, lambda: SET(split, sgd(split))))
    return messages


def test_values_in_parts_are_refused(two):
    for first, second, built, split in two.run(in_parts):
        assert first == second == split == PARTS
        assert built.startswith("layer '0': FSDPModule keeps its values in parts")


def with_zero(rank: int, size: int):
    """ZeroRedundancyOptimizer: each process has the state of some layers."""
    model = make_model()
    wrapped = DistributedDataParallel(model) if size > 1 else model
    optimizer = sgd(model)
    if size > 1:
        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9
        )
        message = refused(ValueError, lambda: make("snfs", wrapped, optimizer))
        assert message.startswith("optimizer: SNFS shares growth out by momentum, of which Zero")
    rewirer = make("dsr", wrapped, optimizer)
    for number in range(30):
        step(wrapped, optimizer, number, rank, size)
        rewirer.step()
    return state_of(model)


def test_a_sharded_optimizer_keeps_its_momenta(two):
    assert_as_alone(two, with_zero)
