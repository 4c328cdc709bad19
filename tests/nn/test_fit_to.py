"""Checkpoints that are loaded tensor by tensor, of a model whose layers have other sizes by now."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

import dsr_kernels
from dsr_kernels.nn import SparseConv2d, SparseLinear


def make(nnz: tuple[int, int], seed: int = 0, device: str = "cpu") -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(SparseConv2d(2, 4, 3, nnz=nnz[0]), nn.Flatten())
    return model.append(SparseLinear(16, 3, nnz=nnz[1])).to(device)


def on_meta(nnz: tuple[int, int]) -> nn.Module:
    with torch.device("meta"):
        return make(nnz, device="meta")


X = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
SAVED = make((20, 12), seed=1)


def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = make((30, 5))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("key", ["", "model."])
def test_distributed_checkpoint_loads_in_its_usual_way(tmp_path, key):
    def whole(state):
        return {"model": state, "epoch": 3} if key else state

    dcp.save(whole(SAVED.state_dict()), checkpoint_id=tmp_path, no_dist=True)
    model, optimizer = fresh()
    reader = dcp.FileSystemReader(tmp_path)
    dsr_kernels.fit_to(model, reader.read_metadata().state_dict_metadata, key)
    state = model.state_dict()
    dcp.load(whole(state), storage_reader=reader, no_dist=True)
    model.load_state_dict(state)
    assert torch.equal(model(X), SAVED(X))
    assert model[2].pattern().col_indices.tolist() == SAVED[2].col_indices.tolist()
    model(X).sum().backward()
    optimizer.step()  # it still knows the parameters
    assert not torch.equal(model(X), SAVED(X))


def assign(model: nn.Module, tensors) -> None:
    """As Accelerate's set_module_tensor_to_device does."""
    for key, value in tensors.items():
        module, _, name = key.rpartition(".")
        held = model.get_submodule(module)
        old = held._parameters.get(name, held._buffers.get(name))
        assert old.shape == value.shape, f"{key}: {tuple(old.shape)}, {tuple(value.shape)}"
        if name in held._parameters:
            held._parameters[name] = nn.Parameter(value.clone(), old.requires_grad)
        else:
            held._buffers[name] = value.clone()


@pytest.mark.parametrize("start", ["on meta", "emptied", "with weights"])
def test_tensors_may_be_assigned_one_after_the_other(tmp_path, start):
    save_file(SAVED.state_dict(), tmp_path / "model.safetensors")
    model = make((30, 5)) if start == "with weights" else on_meta((30, 5))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        keys = list(file.keys())
        dsr_kernels.fit_to(model, {key: file.get_slice(key).get_shape() for key in keys})
        if start == "emptied":
            model.to_empty(device="cpu")
        assign(model, {key: file.get_tensor(key) for key in keys})
    assert torch.equal(model(X), SAVED(X))
    assert all(torch.equal(a, SAVED.state_dict()[k]) for k, a in model.state_dict().items())
    twin = copy.deepcopy(model).to(torch.float64)
    torch.testing.assert_close(twin(X.double()).float(), SAVED(X))


def test_a_pattern_that_was_assigned_is_checked_by_the_first_forward_pass():
    model = on_meta((20, 12))
    state = dict(SAVED.state_dict())
    state["2.col_indices"] = state["2.col_indices"].flip(0)
    assign(model, state)
    for _ in range(2):
        with pytest.raises(ValueError, match="must ascend strictly"):
            model(X)


@pytest.mark.parametrize("emptied", [False, True])
def test_reset_parameters_keeps_a_pattern_that_was_loaded(emptied):
    """And draws one where nothing was."""
    model = on_meta((20, 12))
    if emptied:
        model.to_empty(device="cpu")
    assign(model[2], SAVED[2].state_dict())
    model[2].reset_parameters()
    assert torch.equal(model[2].col_indices, SAVED[2].col_indices)
    assert not torch.equal(model[2].weight_values, SAVED[2].weight_values)
    copied = on_meta((20, 12)).to_empty(device="cpu")
    for layer, saved in ((copied[0], SAVED[0]), (copied[2], SAVED[2])):
        for name, buffer in layer.named_buffers():
            buffer.data.copy_(saved.get_buffer(name))  # counts no version
        layer.reset_parameters()
        assert torch.equal(layer.col_indices, saved.col_indices)
    drawn = [on_meta((20, 12)).to_empty(device="cpu") for _ in range(2)]
    for layers in zip(*drawn, strict=True):
        if isinstance(layers[0], SparseLinear | SparseConv2d):
            for layer in layers:
                layer.reset_parameters(torch.Generator().manual_seed(0))
            assert torch.equal(layers[0].col_indices, layers[1].col_indices)


def test_what_is_not_loaded_does_not_compute():
    model, _ = fresh()
    dsr_kernels.fit_to(model, SAVED.state_dict())
    with pytest.raises(ValueError, match="crow_indices"):
        model(X)
    with pytest.raises(ValueError, match="its pattern has not been loaded yet, nor drawn"):
        model[0].pattern()
    for name in ("crow_indices", "col_indices"):
        for i in (0, 2):
            model[i].get_buffer(name).copy_(SAVED[i].get_buffer(name))
    assert model(X).isnan().all()
    model[0].reset_parameters(), model[2].reset_parameters()
    assert model(X).isfinite().all()


def test_all_layers_are_fitted_or_none():
    sizes = {key: tuple(value.shape) for key, value in SAVED.state_dict().items()}
    bad = {
        "missing": ({k: v for k, v in sizes.items() if k != "2.col_indices"}, "'2.col_indices'"),
        "values": (sizes | {"2.weight_values": (12,)}, r"'2': expected weight_values \(nnz, 1\)"),
        "rows": (sizes | {"2.crow_indices": (9,)}, r"'2': expected .*crow_indices \(4,\)"),
        "nnz": (sizes | {"2.col_indices": (13,)}, r"'2': expected .*of shape \(3, 16\), got"),
        "many": (sizes | {"2.weight_values": (49, 1), "2.col_indices": (49,)}, "'2': expected wei"),
        "no shape": (sizes | {"2.crow_indices": "x"}, "a shape or a tensor for '2.crow_indices'"),
        "no number": (sizes | {"2.crow_indices": 4}, "a shape or a tensor for '2.crow_indices'"),
    }
    for given, message in bad.values():
        model, _ = fresh()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=message):
            dsr_kernels.fit_to(model, given)
        assert all(torch.equal(a, before[k]) for k, a in model.state_dict().items())
    model, _ = fresh()
    with pytest.raises(ValueError, match=r"'0': expected the size of 'net\.0\.weight_values'"):
        dsr_kernels.fit_to(model, sizes, "net.")
    parametrize.register_parametrization(model[2], "weight_values", nn.Identity())
    with pytest.raises(RuntimeError, match="layer '2': weight_values is not a parameter"):
        dsr_kernels.fit_to(model, sizes)
    assert model[0].nnz == 30


def test_a_layer_alone_is_fitted():
    layer = SparseLinear(16, 3, nnz=5)
    dsr_kernels.fit_to(layer, SAVED[2].state_dict())
    layer.load_state_dict(SAVED[2].state_dict())
    assert torch.equal(layer.to_dense(), SAVED[2].to_dense())
