"""A plan never outlives its pattern, however somebody writes to the index tensors."""

from __future__ import annotations

import copy
import gc
import io
import pickle

import numpy as np
import pytest
import torch
from helpers.optimizer_cases import AFTER, load, sgd, small_layer
from torch import Tensor

from dsr_kernels import nn as sparse_nn
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.nn import functional
from dsr_kernels.rewiring import Static

X = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])


def index(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def one_weight() -> sparse_nn.SparseLinear:
    """SparseLinear(4, 1) whose one weight is 1, at column 0."""
    layer = sparse_nn.SparseLinear(4, 1, bias=False, nnz=1)
    layer.replace_topology(index(0, 1), index(0), torch.ones(1))
    return layer


def broadcast(col: Tensor) -> None:
    """What torch.distributed.broadcast does: it writes below autograd, and counts no version."""
    with torch._C._AutoDispatchBelowAutograd():
        col.copy_(index(3))


def through_numpy(col: Tensor) -> None:
    col.numpy()[:] = 3


def through_dlpack(col: Tensor) -> None:
    np.from_dlpack(col).view()
    torch.from_dlpack(col).fill_(3)


WRITES = {
    "copy_": lambda col: col.copy_(index(3)),
    "data": lambda col: col.data.copy_(index(3)),
    "detach": lambda col: col.detach().fill_(3),
    "view": lambda col: col.view(1, 1).fill_(3),
    "setitem": lambda col: col.__setitem__(0, 3),
    "numpy": through_numpy,
    "dlpack": through_dlpack,
    "storage": lambda col: col.untyped_storage().copy_(index(3).untyped_storage()),
    "foreach": lambda col: torch._foreach_copy_([col], [index(3)]),
    "out": lambda col: torch.add(index(1), index(2), out=col),
    "set_": lambda col: col.set_(index(3)),
    "data =": lambda col: setattr(col, "data", index(3)),
    "broadcast": broadcast,
}


@pytest.mark.parametrize("write", WRITES)
def test_written_index_tensors_of_an_op_are_seen(write: str) -> None:
    crow, col, values = index(0, 1), index(0), torch.ones(1)
    assert functional.sparse_linear(X, values, None, crow, col, (1, 4)).item() == 1
    WRITES[write](col)
    assert functional.sparse_linear(X, values, None, crow, col, (1, 4)).item() == 1000


@pytest.mark.parametrize("write", sorted(set(WRITES) - {"set_", "data ="}))
def test_written_index_tensors_of_a_layer_are_refused(write: str) -> None:
    layer = one_weight()
    assert layer(X).item() == 1
    WRITES[write](layer.col_indices)
    for use in (lambda: layer(X), layer.to_dense, layer.state_dict, lambda: copy.deepcopy(layer)):
        with pytest.raises(RuntimeError, match="written to its crow_indices or col_indices"):
            use()
    assert layer.adopt_pattern() is layer.pattern()
    assert layer(X).item() == 1000 and layer.to_dense()[0, 3] == 1


@pytest.mark.parametrize("write", ["set_", "data ="])
def test_index_tensors_with_other_memory_are_taken_as_they_are(write: str) -> None:
    layer = one_weight()
    layer(X)
    WRITES[write](layer.col_indices)
    assert layer(X).item() == 1000


def test_a_view_that_numpy_has_kept_is_seen() -> None:
    """Its memory cannot be taken from it, so it is compared as long as the view lives."""
    crow, col, values = index(0, 1), index(0), torch.ones(1)
    view = col.numpy()
    for column in (1, 3, 0, 2):
        view[0] = column
        y = functional.sparse_linear(X, values, None, crow, col, (1, 4))
        assert y.item() == 10**column


def test_memory_of_numpy_is_compared() -> None:
    memory = np.zeros(1, np.int32)
    crow, col, values = index(0, 1), torch.from_numpy(memory), torch.ones(1)
    for column in (1, 3, 0, 2):
        memory[0] = column
        y = functional.sparse_linear(X, values, None, crow, col, (1, 4))
        assert y.item() == 10**column


def test_memory_of_other_processes_is_compared() -> None:
    crow, col, values = index(0, 1), index(0).share_memory_(), torch.ones(1)
    y = functional.sparse_linear(X, values, None, crow, col, (1, 4))
    assert y.item() == 1 and col.is_shared()
    torch.tensor([], dtype=torch.int32).set_(col.untyped_storage()).resize_(1).fill_(3)
    assert functional.sparse_linear(X, values, None, crow, col, (1, 4)).item() == 1000


def test_indices_rewritten_at_each_step_keep_one_plan() -> None:
    patterns.clear()
    gc.collect()
    before = len(patterns.plans())
    crow, col, values = index(0, 1), index(0), torch.ones(1)
    for step in range(50):
        col.fill_(step % 4)
        y = functional.sparse_linear(X, values, None, crow, col, (1, 4))
        assert y.item() == 10 ** (step % 4)
    assert len(patterns.plans()) == before + 1


READS = {
    "print": repr,
    "state_dict": lambda layer: layer.state_dict(),
    "save": lambda layer: torch.save(layer.state_dict(), io.BytesIO()),
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "numpy": lambda layer: layer.col_indices.numpy().sum(),
    "to": lambda layer: layer.to(torch.float64),
    "the same again": lambda layer: layer.load_state_dict(copy.deepcopy(layer.state_dict())),
    "share_memory": lambda layer: layer.share_memory(),
    "data_ptr": lambda layer: layer.col_indices.data_ptr(),
}


@pytest.mark.parametrize("read", READS)
def test_a_pattern_stays_the_same_object_while_it_is_read(read: str) -> None:
    layer = one_weight()
    before = layer.pattern()
    READS[read](layer)
    assert layer.pattern() is before
    assert before.crow_indices.tolist() == [0, 1] and before.col_indices.tolist() == [0]


def test_an_old_pattern_keeps_what_it_was() -> None:
    layer = one_weight()
    before = layer.pattern()
    layer.replace_topology(index(0, 2), index(1, 2), torch.ones(2))
    assert layer.pattern() is not before and layer.pattern().col_indices.tolist() == [1, 2]
    assert before.col_indices.tolist() == [0]
    before.col_indices.fill_(9)  # a copy
    assert before.col_indices.tolist() == [0]


def test_patterns_in_one_flat_tensor_are_told_apart() -> None:
    """Views of one storage, of the same sizes."""
    flat = index(0, 1, 0, 1, 0, 3)
    values = torch.ones(1)
    for _ in range(2):
        for begin, expected in ((0, 1), (2, 1), (4, 1000)):
            crow, col = flat[0:2], flat[begin : begin + 1]
            if begin == 4:
                col = flat[5:6]
            y = functional.sparse_linear(X, values, None, crow, col, (1, 4))
            assert y.item() == expected


def test_no_copy_is_kept_of_what_nobody_writes_to() -> None:
    layer = sparse_nn.SparseLinear(64, 64)
    layer(torch.ones(1, 64))
    assert torch._C._is_cow_tensor(layer.col_indices)
    held = layer.pattern().col_indices
    assert torch._C._data_address(held) == torch._C._data_address(layer.col_indices)


def test_patterns_die_with_their_layers() -> None:
    patterns.clear()
    layer = one_weight()
    layer(X)
    before = len(patterns.plans())
    del layer
    gc.collect()
    assert len(patterns.plans()) == before - 1


def test_a_copy_owns_its_own_pattern() -> None:
    layer = one_weight()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.pattern() is not layer.pattern()
        twin.col_indices.data.fill_(3)
        with pytest.raises(RuntimeError, match="written"):
            twin(X)
        assert layer(X).item() == 1


def test_adopting_refuses_what_is_no_pattern_and_names_the_layer() -> None:
    model = torch.nn.Sequential(one_weight())
    model[0].col_indices.data.fill_(4)
    with pytest.raises(ValueError, match=r"layer '0': col_indices: expected columns in \[0, 4\)"):
        sparse_nn.adopt_patterns(model)
    model[0].col_indices.data.fill_(3)
    sparse_nn.adopt_patterns(model)
    assert model(X).item() == 1000


def test_a_capsule_that_was_taken_after_a_forward_pass_is_seen() -> None:
    layer = one_weight()
    assert layer(X).item() == 1
    view = torch.from_dlpack(layer.col_indices)
    assert layer(X).item() == 1
    view[0] = 3
    with pytest.raises(RuntimeError, match="written"):
        layer(X)
    view[0] = 0
    assert layer(X).item() == 1
    del view
    layer(X)
    assert torch._C._is_cow_tensor(layer.col_indices)  # shared again


def test_layers_that_share_index_tensors_part_when_one_changes() -> None:
    one, other = one_weight(), one_weight()
    other.crow_indices, other.col_indices = one.crow_indices, one.col_indices
    both = copy.deepcopy(torch.nn.ModuleList([one, other]))  # which go on sharing
    for first, second in ((one, other), both):
        first.replace_topology(index(0, 1), index(3), torch.ones(1))
        assert first(X).item() == 1000 and second(X).item() == 1
    state = one_weight().state_dict()
    both[0].load_state_dict(state, assign=True)
    both[1].load_state_dict(state, assign=True)
    both[0].load_state_dict(one.state_dict())
    assert both[0](X).item() == 1000 and both[1].col_indices.tolist() == [0]


def test_a_pattern_stays_owned_when_another_owner_of_its_tensors_dies() -> None:
    layer = one_weight()
    shallow = copy.copy(layer)
    assert shallow(X).item() == 1
    del shallow
    gc.collect()
    layer.col_indices.data.fill_(3)
    with pytest.raises(RuntimeError, match="written"):
        layer(X)


@pytest.mark.parametrize("write", ["data =", "data", "adopted", "functional"])
def test_a_backward_with_another_pattern_raises(write: str) -> None:
    layer = one_weight()
    if write == "functional":
        crow, col, values = index(0, 1), index(0), torch.ones(1, requires_grad=True)
        y = functional.sparse_linear(X, values, None, crow, col, (1, 4))
        col.data.fill_(3)
    else:
        y = layer(X)
        WRITES["data" if write == "adopted" else write](layer.col_indices)
        if write == "adopted":
            layer.adopt_pattern()
    with pytest.raises(RuntimeError, match=r"written|changed between forward and backward"):
        y.sum().backward()


def test_a_backward_after_the_same_indices_were_written_again_goes_on() -> None:
    layer = one_weight()
    y = layer(X)
    layer.col_indices.copy_(layer.col_indices.clone())
    y.sum().backward()
    assert layer.weight_values.grad.item() == 1


def test_a_layers_dict_can_be_pickled() -> None:
    found = pickle.loads(pickle.dumps(one_weight().__dict__))
    assert found["_owned"] is None


def test_a_pattern_that_was_overwritten_is_not_asked_for_though_a_rewirer_remembers_it():
    """As under accelerate's load_state: safetensors.torch.load_model keeps a state_dict meanwhile,
    and asks for addresses of its tensors that may be written to.
    """
    layer = small_layer()
    rewirer = Static(layer, sgd(layer))
    kept = layer.state_dict()
    for tensor in kept.values():
        tensor.data_ptr()
    load(layer, AFTER)
    assert torch.equal(layer(torch.ones(6)), layer.to_dense().sum(1))
    assert layer.to_dense().flatten().nonzero().flatten().tolist() == AFTER
    assert kept and rewirer.iteration == 0  # both are alive
