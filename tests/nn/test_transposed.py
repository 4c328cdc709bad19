"""transformers' Conv1D, which keeps its weight as [inputs, outputs], becomes sparse and back."""

from __future__ import annotations

import pickle
import sys
import types

import pytest
import torch
from torch import nn

from dsr_kernels import SparseLinear, densify, named_sparse_modules, sparsify, summary
from dsr_kernels.nn.transposed import SparseTransposed


class Conv1D(nn.Module):
    """As in transformers.pytorch_utils."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.empty(nx, nf).normal_(std=0.02))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x):
        x2 = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return x2.view(*x.shape[:-1], self.nf)


Conv1D.__module__ = "transformers.pytorch_utils"


@pytest.fixture(autouse=True)
def transformers(monkeypatch):
    package, module = types.ModuleType("transformers"), types.ModuleType(Conv1D.__module__)
    module.Conv1D = Conv1D
    monkeypatch.setitem(sys.modules, "transformers", package)
    monkeypatch.setitem(sys.modules, Conv1D.__module__, module)


def model() -> nn.Sequential:
    return nn.Sequential(Conv1D(24, 8), nn.GELU(), Conv1D(8, 24), Conv1D(8, 8))


@pytest.mark.parametrize("inplace", [True, False])
def test_there_and_back(inplace):
    dense = model().eval()
    dense[0].flag, dense[0].weight._no_weight_decay = [1], True
    dense[2].weight.requires_grad_(False)
    x = torch.randn(2, 3, 8)
    expected = dense(x)
    numbers = torch.get_rng_state()
    same = densify(sparsify(dense, 0.0, keep="magnitude", inplace=inplace), inplace=inplace)
    assert torch.equal(torch.get_rng_state(), numbers)
    torch.testing.assert_close(same(x), expected)
    assert [type(layer) for layer in same] == [Conv1D, nn.GELU, Conv1D, Conv1D]
    assert same[0].flag == [1] and same[0].weight._no_weight_decay and not same[0].training
    assert not same[2].weight.requires_grad and same[0].weight.is_contiguous()
    assert vars(same[0]).keys() == vars(model()[0]).keys() | {"flag"}
    model().load_state_dict(same.state_dict())


@pytest.mark.parametrize("block_size", [1, 8])
def test_it_computes_what_it_becomes_and_trains(block_size):
    sparse = sparsify(model(), 0.75, "erk", preset="all", block_size=block_size)
    assert [layer.weight_shape for _, layer in named_sparse_modules(sparse)] == [
        *((24, 8), (8, 24), (8, 8)),
    ]
    assert isinstance(sparse[0], SparseLinear) and sparse[0].nf == 24
    assert sum(layer.nnz for _, layer in named_sparse_modules(sparse)) == 448 // 4
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(densify(pickle.loads(pickle.dumps(sparse)))(x), sparse(x))
    sparse(x).sum().backward()
    assert sparse[0].weight_values.grad.shape == sparse[0].weight_values.shape
    assert torch.equal(sparse[0](x=x), sparse[0](x))
    assert "SparseTransposed" in str(summary(sparse))


def test_presets_take_it_for_the_linear_layer_that_it_is():
    assert type(sparsify(model(), 0.5)[0]) is not Conv1D  # no stem
    assert type(sparsify(model(), 0.5)[3]) is Conv1D  # the head
    assert type(sparsify(model(), 0.5, preset="paper")[3]) is not Conv1D


def test_a_dense_checkpoint_is_taken_as_conv1d_keeps_it():
    dense = model()  # the last weight is square: only its meaning tells how it lies
    sparse = sparsify(dense, 0.5, preset="all")
    sparse.load_state_dict(dense.state_dict())
    x = torch.randn(4, 8)
    torch.testing.assert_close(sparse(x), dense(x))
    sparse.load_state_dict(sparsify(dense, 0.5, preset="all").state_dict())


def hung() -> nn.Sequential:
    """A model whose first Conv1D has data of every kind on it, and shares its bias."""
    dense = model()
    first = dense[0]
    first.flag, first.lora, first.weight.group = [1], nn.Linear(8, 8), {"lr": 1}
    first.register_buffer("scratch", torch.zeros(2), persistent=False)
    dense[2].bias = dense[3].bias
    return dense


@pytest.mark.parametrize("back", [False, True])
def test_a_copy_shares_nothing_with_the_given_model_and_ties_what_it_ties(back):
    given = sparsify(hung(), 0.0, keep="magnitude", preset="all") if back else hung()
    made = densify(given) if back else sparsify(given, 0.0, keep="magnitude", preset="all")
    old, new = given[0], made[0]
    weights = [
        next(p for p in layer.parameters(recurse=False) if p.dim() == 2) for layer in (old, new)
    ]
    assert new.flag == [1] and new.flag is not old.flag
    assert weights[1].group == {"lr": 1} and weights[1].group is not weights[0].group
    assert new.lora is not old.lora and type(new.lora) is (nn.Linear if back else SparseLinear)
    assert new.scratch is not old.scratch and "0.scratch" not in made.state_dict()
    assert made[2].bias is made[3].bias and made[2].bias is not given[2].bias
    assert {id(p) for p in given.parameters()}.isdisjoint(map(id, made.parameters()))


def test_in_place_what_hangs_on_it_is_the_same_object_and_its_layers_become_sparse_too():
    dense = hung()
    dense.append(nn.Linear(8, 8))
    dense[4].lora = dense[0].lora
    flag, scratch, bias = dense[0].flag, dense[0].scratch, dense[3].bias
    sparse = sparsify(dense, 0.5, preset="all", inplace=True)
    assert sparse[0].flag is flag and sparse[0].scratch is scratch
    assert sparse[2].bias is bias and sparse[3].bias is bias
    assert type(sparse[0].lora) is SparseLinear and len(list(named_sparse_modules(sparse))) == 5
    assert sparse[4].lora is sparse[0].lora
    back = densify(sparse, inplace=True)
    assert type(back[0].lora) is nn.Linear and back[4].lora is back[0].lora


def test_tied_values_become_a_tied_weight():
    sparse = sparsify(nn.Sequential(Conv1D(8, 8), Conv1D(8, 8)), 0.5, preset="all")
    sparse[1].weight_values = sparse[0].weight_values
    with pytest.raises(TypeError, match="shared with 0, its pattern is not"):
        densify(sparse)
    sparse[1].crow_indices, sparse[1].col_indices = sparse[0].crow_indices, sparse[0].col_indices
    dense = densify(sparse)
    assert dense[0].weight is dense[1].weight


def test_code_and_names_that_the_twin_needs_are_refused():
    for spoil, said in (
        (lambda layer: setattr(layer, "col_indices", 1), "attribute col_indices has a name"),
        (lambda layer: setattr(layer, "nf", 7), "nf is 7, its weight's is 24"),
    ):
        dense = model()
        spoil(dense[0])
        with pytest.warns(UserWarning, match=f"0: its {said}"):
            assert type(sparsify(dense, 0.5, preset="all")[0]) is Conv1D
    sparse = sparsify(model(), 0.5, preset="all")
    sparse[0].register_forward_hook(lambda *args: None)
    with pytest.raises(TypeError, match="SparseTransposed: it has hooks"):
        sparse[0].dense_module()
    with pytest.raises(TypeError, match="0: it has hooks"):
        densify(sparse)
    with pytest.raises(TypeError, match="it was not made of a Conv1D"):
        SparseTransposed(4, 4, nnz=4).dense_module()


def test_on_meta_and_refusals():
    with torch.device("meta"):
        dense = model()
    sparse = sparsify(dense, 0.5, preset="all")
    assert sparse[0].weight_values.is_meta and sparse[0].nnz == 96
    assert densify(sparse)[0].weight.shape == (8, 24)
    hooked = model()
    hooked[0].register_forward_hook(lambda *args: None)
    with pytest.warns(UserWarning, match="0: it has hooks"):
        sparse = sparsify(hooked, 0.5, preset="all")
    assert type(sparse[0]) is Conv1D
    with pytest.raises(ValueError, match=r"weights are torch\.bfloat16"):
        sparsify(model().bfloat16())
