"""nn.TransformerEncoder, whose fast path for inference reads the weights of linear layers."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from dsr_kernels import densify, named_sparse_modules, sparsify


def encoder(activation: str) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=activation)
    return nn.TransformerEncoder(layer, 2)


X = torch.randn(2, 5, 8)
MASK = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("inplace", [False, True])
def test_an_encoder_is_converted_runs_in_both_modes_and_comes_back(activation, inplace):
    dense = encoder(activation).eval()
    names = set(vars(dense)), set(vars(dense.layers[0]))
    kinds = [layer.activation_relu_or_gelu for layer in dense.layers]
    with torch.no_grad():
        expected = dense(X, src_key_padding_mask=MASK)
    with pytest.warns(UserWarning, match="self_attn.out_proj: the module it is in"):
        sparse = sparsify(dense, 0.0, preset="all", inplace=inplace, example_input=X)
    assert len(list(named_sparse_modules(sparse))) == 4
    if not inplace:
        assert dense.use_nested_tensor and kinds[0]
        assert [layer.activation_relu_or_gelu for layer in dense.layers] == kinds
    with torch.no_grad():
        found = sparse(X, src_key_padding_mask=MASK)
        torch.testing.assert_close(found[~MASK], expected[~MASK])
    sparse.train()(X).sum().backward()
    back = densify(sparse.eval(), inplace=inplace)
    assert [layer.activation_relu_or_gelu for layer in back.layers] == kinds
    assert back.use_nested_tensor and names == (set(vars(back)), set(vars(back.layers[0])))
    with torch.no_grad():
        torch.testing.assert_close(back(X, src_key_padding_mask=MASK)[~MASK], expected[~MASK])


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
        self.blocks = nn.ModuleList([nn.ModuleDict({"encoder": encoder("gelu")}), encoder("relu")])
        self.again = self.blocks[1]
        self.listed = [self.blocks[1]]
        self.layer = encoder("gelu").layers[0]
        self.plain = encoder("relu")  # whose owner has turned both off
        self.plain.use_nested_tensor, self.plain.layers[0].activation_relu_or_gelu = False, 0


def flags(model: nn.Module) -> list:
    names = ("use_nested_tensor", "activation_relu_or_gelu", "_flag_when_dense")
    return [[getattr(m, name, None) for name in names] for m in model.modules()]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "make", [Holder, lambda: encoder("relu"), lambda: encoder("gelu").layers[0]]
)
def test_flags_are_off_while_sparse_and_as_they_were_after_densify_wherever_it_is(make, inplace):
    model = make()
    before = flags(model)
    sparse = sparsify(model, 0.5, preset="all", exclude=["*linear2"], inplace=inplace)
    assert not any(any(pair[:2]) for pair in flags(sparse))
    sparse = sparsify(sparse, 0.5, preset="all", inplace=inplace)  # the rest
    copied = pickle.loads(pickle.dumps(copy.deepcopy(sparse)))
    for other in (copied, sparse):
        assert not any(any(pair[:2]) for pair in flags(other))
        assert flags(densify(other, inplace=inplace)) == before
    assert inplace or flags(model) == before


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_encoder_whose_layers_were_made_dense_by_themselves_gets_its_flag_back_later():
    model = encoder("relu")
    before = flags(model)
    sparse = sparsify(model, 0.5, preset="all")
    sparse.layers = densify(sparse.layers)
    assert flags(densify(sparse)) == before


def test_the_switch_of_torch_is_as_it_was():
    assert torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparsify(encoder("relu"), 0.5, preset="all", example_input=X)
    assert torch.backends.mha.get_fastpath_enabled()
