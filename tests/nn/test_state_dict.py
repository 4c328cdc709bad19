"""Checkpoints: what a sparse layer saves, what it takes, and what it refuses as a whole."""

from __future__ import annotations

import copy
from io import BytesIO

import pytest
import torch
from helpers.nn_cases import check_layer, layer
from torch import nn

from dsr_kernels import SparseConv2d, SparseLinear


def small(seed: int = 0, **kwargs) -> SparseConv2d:
    return layer(4, 6, 3, seed=seed, **kwargs)


def same(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_keys_and_dtypes():
    state = nn.Sequential(small()).state_dict()
    assert list(state) == [
        "0.weight_values",
        "0.bias",
        "0.crow_indices",
        "0.col_indices",
        "0.dense_shape",
    ]
    assert state["0.col_indices"].dtype == torch.int32


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
def test_round_trip_into_another_pattern_and_nnz(sparsity, assign):
    saved, module = small(seed=1, sparsity=sparsity), small(seed=2)
    buffer = BytesIO()
    torch.save(saved.state_dict(), buffer)
    buffer.seek(0)
    parameter = module.weight_values
    result = module.load_state_dict(torch.load(buffer, weights_only=True), assign=assign)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert same(module, saved)
    assert (module.weight_values is parameter) != assign
    check_layer(module, torch.randn(2, 4, 6, 6))


def test_loading_copies():
    saved, module = small(seed=1), small(seed=2)
    module.load_state_dict(saved.state_dict())
    with torch.no_grad():
        module.weight_values.zero_()
    assert saved.weight_values.abs().sum() > 0
    assert saved.col_indices.data_ptr() != module.col_indices.data_ptr()


def test_loading_another_precision():
    module = small(seed=2).double()
    saved = small(seed=1)
    module.load_state_dict(saved.state_dict())
    assert module.weight_values.dtype == torch.float64
    assert torch.equal(module.weight_values, saved.weight_values.double())


def test_int64_indices_are_taken():
    saved, module = small(seed=1), small(seed=2)
    state = saved.state_dict()
    for key in ("crow_indices", "col_indices"):
        state[key] = state[key].long()
    for assign in (False, True):
        module.load_state_dict(state, assign=assign)
        assert module.col_indices.dtype == torch.int32
        assert same(module, saved)


@pytest.mark.parametrize("assign", [False, True])
def test_dense_weight_gives_its_exact_non_zeros(assign):
    dense = nn.Conv2d(4, 6, 3)
    with torch.no_grad():
        dense.weight[dense.weight.abs() < 0.1] = 0
    module = small()
    model = nn.Sequential(module)
    result = model.load_state_dict({"0.weight": dense.weight, "0.bias": dense.bias}, assign=assign)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert module.nnz == dense.weight.count_nonzero()
    assert torch.equal(module.to_dense(), dense.weight)
    assert torch.equal(module.bias, dense.bias)
    check_layer(module, torch.randn(2, 4, 6, 6))


def test_dense_weight_of_a_linear_layer():
    dense, module = nn.Linear(5, 4), SparseLinear(5, 4)
    module.load_state_dict(dense.state_dict())
    assert torch.equal(module.to_dense(), dense.weight)


def test_all_zero_weight():
    module = SparseLinear(5, 4)
    module.load_state_dict({"weight": torch.zeros(4, 5), "bias": torch.zeros(4)})
    assert module.nnz == 0
    assert torch.equal(module(torch.ones(2, 5)), torch.zeros(2, 4))


def changed(state, **changes):
    state = dict(state)
    for key, value in changes.items():
        if value is None:
            del state[key]
        else:
            state[key] = value(state[key]) if callable(value) else value
    return state


REFUSED = {
    "values without indices": (
        {"crow_indices": None, "col_indices": None},
        "have no meaning without",
    ),
    "no columns": ({"col_indices": None}, "but not col_indices"),
    "indices without values": ({"weight_values": None}, "but not weight_values"),
    "sparse and dense": ({"weight": torch.zeros(6, 4, 3, 3)}, "expected either a dense weight or"),
    "fewer values": (
        {"weight_values": lambda v: v[:-1]},
        "weight_values: expected floating-point values",
    ),
    "integer values": (
        {"weight_values": lambda v: v.int()},
        "weight_values: expected floating-point",
    ),
    "unsorted": ({"col_indices": lambda c: c.flip(0)}, "col_indices: expected strictly ascending"),
    "twins": ({"col_indices": lambda c: c * 0}, "col_indices: expected strictly ascending"),
    "out of range": ({"col_indices": lambda c: c + 36}, "col_indices: expected columns in"),
    "beyond int32": ({"col_indices": lambda c: c.long() + 2**32}, "in the range of int32"),
    "float indices": ({"col_indices": lambda c: c.float()}, "expected int32"),
    "other rows": ({"crow_indices": lambda c: c[:-1]}, "crow_indices: expected 7 entries"),
    "other total": ({"crow_indices": lambda c: c - (c == c[-1]).int()}, "crow_indices"),
    "falling rows": ({"crow_indices": lambda c: c[[0, 3, 2, 1, 4, 5, 6]]}, "never decrease"),
    "other bias": ({"bias": torch.zeros(5)}, "bias: expected shape"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_refuses_as_a_whole(case, strict, assign):
    changes, message = REFUSED[case]
    module = small(seed=2, sparsity=0.5)
    before = copy.deepcopy(module)
    state = changed(small(seed=1).state_dict(), **changes)
    with pytest.raises(RuntimeError, match=message) as error:
        module.load_state_dict(state, strict=strict, assign=assign)
    assert "SparseConv2d" in str(error.value)
    assert same(module, before)


def test_errors_name_the_layer():
    model = nn.Sequential(nn.ReLU(), nn.Sequential(small()))
    state = changed(model.state_dict(), **{"1.0.col_indices": None})
    with pytest.raises(
        RuntimeError, match=r"1\.0: the checkpoint has weight_values, crow_indices but"
    ):
        model.load_state_dict(state)


def test_refuses_the_pattern_of_another_shape_with_as_many_rows():
    """A 3x3 kernel's columns are in range for a 5x5 kernel: the shape in the metadata tells."""
    module = layer(4, 6, 5)
    with pytest.raises(RuntimeError, match=r"expected a weight of shape \(6, 4, 5, 5\)"):
        module.load_state_dict(small().state_dict())


def test_refuses_a_dense_weight_of_another_shape():
    for weight in (torch.zeros(6, 4, 5, 5), torch.zeros(6, 36), torch.zeros(6, 4, 3, 3).int()):
        with pytest.raises(RuntimeError, match=r"weight: expected a dense floating-point weight"):
            small().load_state_dict({"weight": weight, "bias": torch.zeros(6)})


def test_missing_and_unexpected_keys_go_torchs_way():
    module = small()
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"weight_values\""):
        module.load_state_dict({})
    result = module.load_state_dict({}, strict=False)
    assert set(result.missing_keys) == {
        "weight_values",
        "bias",
        "crow_indices",
        "col_indices",
        "dense_shape",
    }
    state = dict(module.state_dict(), extra=torch.zeros(1))
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"extra\""):
        module.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"bias\""):
        small(bias=False).load_state_dict(module.state_dict())


def test_a_module_on_meta_takes_a_checkpoint_by_assignment():
    saved = small(seed=1, sparsity=0.5)
    with torch.device("meta"):
        module = SparseConv2d(4, 6, 3)
    module.load_state_dict(saved.state_dict(), assign=True)
    assert same(module, saved)
    check_layer(module, torch.randn(2, 4, 6, 6))


def test_backward_through_the_pattern_before_loading_is_refused():
    module = small(seed=2)
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    for sparsity in (0.7, 0.5):
        loss = module(x).sum()
        module.load_state_dict(small(seed=1, sparsity=sparsity).state_dict())
        with pytest.raises(RuntimeError, match="changed between forward and backward"):
            loss.backward()


def test_training_continues_after_loading_another_nnz():
    module, x = small(seed=2), torch.randn(2, 4, 6, 6)
    losses = [module(x).sum()]
    losses[0].backward()
    module.load_state_dict(small(seed=1, sparsity=0.5).state_dict())
    losses.append(module(x).sum())
    losses[1].backward()
    assert module.weight_values.grad.shape == module.weight_values.shape


def test_safetensors_round_trip(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    saved, module = small(seed=1, sparsity=0.5), small(seed=2)
    safetensors.save_file(saved.state_dict(), tmp_path / "layer.safetensors")
    module.load_state_dict(safetensors.load_file(tmp_path / "layer.safetensors"))
    assert same(module, saved)


def test_a_checkpoint_from_before_the_values_were_renamed_says_how_to_rename_them():
    source = nn.Sequential(SparseLinear(5, 4), nn.ReLU(), SparseLinear(4, 3))
    old = source.state_dict()
    for key in [key for key in old if key.endswith("weight_values")]:
        old[key.replace("weight_values", "values")] = old.pop(key)[:, 0]
    target = nn.Sequential(SparseLinear(5, 4), nn.ReLU(), SparseLinear(4, 3))
    before = copy.deepcopy(target)
    with pytest.raises(RuntimeError, match="became `weight_values`") as refused:
        target.load_state_dict(old)
    assert str(refused.value).count("became") == 1 and same(target, before)
    cure = str(refused.value).split("rename them first: ")[1]
    exec(cure, {"state_dict": old})
    target.load_state_dict(old)
    assert same(target, source)
