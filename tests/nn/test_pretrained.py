"""save_pretrained and from_pretrained: a round trip, or a refusal, and never random weights."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from dsr_kernels import SparseLinear, densify, sparsify


class Mixin:
    """What huggingface_hub's does: from_pretrained builds anew and passes over unknown keys."""

    def save_pretrained(self) -> dict[str, Any]:
        return self._save_pretrained()

    def _save_pretrained(self) -> dict[str, Any]:
        return {key: value.clone() for key, value in self.state_dict().items()}

    @classmethod
    def from_pretrained(cls, saved: dict[str, Any]) -> Mixin:
        model = cls()
        model.load_state_dict(saved, strict=False)
        return model


class Dense(nn.Sequential, Mixin):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


class Sparse(nn.Sequential, Mixin):
    def __init__(self) -> None:
        super().__init__(SparseLinear(8, 8, sparsity=0.5), nn.ReLU(), SparseLinear(8, 1, nnz=2))


X = torch.randn(3, 8)


def test_dense_layers_refuse_a_sparse_checkpoint_and_sparsified_ones_take_it():
    model = sparsify(Dense(), 0.5, preset="all")
    with pytest.warns(UserWarning, match=r"^save_pretrained: .*sparsify it in the same way"):
        saved = model.save_pretrained()
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight(.|\n)*for 2\.weight"):
        Dense.from_pretrained(saved)
    again = sparsify(Dense(), 0.5, preset="all")
    again.load_state_dict(saved)
    assert torch.equal(again(X), model(X))


def test_densified_and_built_sparse_models_make_the_round_trip():
    model = sparsify(Dense(), 0.5, preset="all")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved = densify(model).save_pretrained()
    torch.testing.assert_close(Dense.from_pretrained(saved)(X), model(X))
    built = Sparse()
    with pytest.warns(UserWarning, match="^save_pretrained: where its class builds dense"):
        saved = built.save_pretrained()
    assert torch.equal(Sparse.from_pretrained(saved)(X), built(X))


def test_other_checkpoints_have_no_mark():
    model = sparsify(Dense(), 0.5, preset="all")

    def save_pretrained(model: nn.Module) -> dict[str, Any]:
        return model.state_dict()

    assert "0.weight" not in model.state_dict()
    assert "0.weight" not in save_pretrained(model)
    assert model.state_dict().keys() == sparsify(Dense(), 0.5, preset="all").state_dict().keys()
