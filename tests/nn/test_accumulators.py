"""What hangs on a gradient accumulator over a rewire: it stays, or the rewire is refused."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from helpers.one_row import X, index, two_weights
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dsr_kernels import SparseLinear


def rewire(layer: SparseLinear, nnz: int) -> None:
    layer.replace_topology(index(0, nnz), index(0, 1, 3)[:nnz], torch.ones(nnz))


def step_in_backward(layer: SparseLinear, on_node: bool) -> list:
    """An optimizer in the backward pass: each value moves by -0.1."""
    parameter = layer.weight_values

    @torch.no_grad()
    def step(*_: object) -> None:
        parameter.sub_(0.1)

    if not on_node:
        parameter.register_post_accumulate_grad_hook(step)
        return []
    node = parameter.expand_as(parameter).grad_fn.next_functions[0][0]
    node.register_hook(step)
    return [node]


@pytest.mark.parametrize("kept_graph", [False, True])
@pytest.mark.parametrize("on_node", [False, True])
def test_an_optimizer_in_the_backward_pass_goes_on(on_node: bool, kept_graph: bool) -> None:
    layer = two_weights()
    held = step_in_backward(layer, on_node)
    loss = layer(X).sum()
    loss.backward()
    if not kept_graph:
        del loss
    rewire(layer, 2)
    before = layer.weight_values.detach().clone()
    layer(X).sum().backward()
    torch.testing.assert_close(layer.weight_values.detach(), before - 0.1)
    assert len(held) == on_node


def test_a_hook_on_the_parameter_stays_when_its_length_changes() -> None:
    layer = two_weights()
    step_in_backward(layer, on_node=False)
    rewire(layer, 3)
    layer(X).sum().backward()
    torch.testing.assert_close(layer.weight_values.detach(), torch.full((3, 1), 0.9))


@pytest.mark.parametrize("kept_graph", [False, True])
def test_a_hook_on_the_node_refuses_another_length(kept_graph: bool) -> None:
    model = nn.Sequential(two_weights())
    held = step_in_backward(model[0], on_node=True)
    loss = model(X).sum() if kept_graph else None
    state = {"0.weight_values": torch.ones(1, 1), "0.crow_indices": index(0, 1)}
    state |= {"0.col_indices": index(3), "0.dense_shape": torch.tensor([1, 4])}
    for change in (
        lambda: rewire(model[0], 3),
        lambda: model.load_state_dict(state),
    ):
        with pytest.raises(RuntimeError, match=r"cannot change from 2 to .*gradient accumulator"):
            change()
    assert model[0].nnz == 2 and model(X).item() == 201
    del held, loss
    rewire(model[0], 3)


def test_graphs_alone_refuse_nothing() -> None:
    layer, kept = two_weights(), []
    for nnz in (3, 1, 2, 3):
        kept.append(layer(X).sum())
        layer(X).sum().backward()
        rewire(layer, nnz)


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_inside_distributed_data_parallel(group) -> None:
    """Its reducer keeps working where the length stays, and is not left behind where it changes."""
    model = nn.Sequential(two_weights())
    ddp = DistributedDataParallel(model)
    reduced = []
    ddp.register_comm_hook(None, lambda _, bucket: reduced.append(1) or _done(bucket.buffer()))
    for _ in range(3):
        ddp(X).sum().backward()
        rewire(model[0], 2)
    assert len(reduced) == 3
    model.state_dict()  # from here the layer knows its name
    with pytest.raises(RuntimeError, match=r"layer '0': .* inside a torch\.nn\.parallel"):
        rewire(model[0], 3)
    assert model[0].nnz == 2
    del ddp
    rewire(model[0], 3)


class Wrapped(DistributedDataParallel):
    pass


def test_inside_a_subclass_of_distributed_data_parallel(group) -> None:
    layer = two_weights()
    ddp = Wrapped(layer)
    with pytest.raises(RuntimeError, match=r"inside a torch\.nn\.parallel"):
        rewire(layer, 3)
    del ddp


def test_what_distributed_data_parallel_sends_at_its_construction_is_taken(group) -> None:
    """All tensors of the first process: here another layer's stand for them."""
    layer, first = two_weights(), two_weights()
    rewire(first, 2)
    ddp = DistributedDataParallel(layer)
    for mine, theirs in zip(layer.state_dict().values(), first.state_dict().values(), strict=True):
        mine.data.copy_(theirs)
    assert ddp(X).item() == 11
    layer.col_indices.data.copy_(index(0, 2))
    with pytest.raises(RuntimeError, match="written"):
        ddp(X)


def _done(buffer: Tensor) -> torch.futures.Future:
    future: torch.futures.Future = torch.futures.Future()
    future.set_result(buffer)
    return future
