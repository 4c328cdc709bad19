"""init='fan_in', and what a model that has learned is told."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from dsr_kernels import sparsify


def chain(layers: int = 10, width: int = 256) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential()
    for _ in range(layers):
        linear = nn.Linear(width, width, bias=False)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        model.extend([linear, nn.ReLU()])
    return model


@pytest.mark.parametrize("options", [{}, {"distribution": "erk"}, {"block_size": 8}])
def test_fan_in_keeps_the_size_of_activations(options):
    model, x = chain(), torch.randn(512, 256)
    dense = model(x).std()
    draw = torch.Generator().manual_seed(1)
    common = {"preset": "all", "generator": draw, **options}
    plain = sparsify(model, 0.9, **common)(x).std()
    rescaled = sparsify(model, 0.9, init="fan_in", **common)(x).std()
    assert plain < 1e-3 * dense
    assert dense / 3 < rescaled < 3 * dense


def test_fan_in_is_that_of_each_output_channel():
    layer = nn.Conv2d(6, 8, 3)
    sparse = sparsify(layer, 0.7, init="fan_in")
    held = sparse.crow_indices.diff()
    weight = sparse.to_dense()
    for channel, count in enumerate(held.tolist()):
        kept = weight[channel] != 0
        expected = layer.weight[channel][kept] * (54 / max(count, 1)) ** 0.5
        torch.testing.assert_close(weight[channel][kept], expected)
    torch.testing.assert_close(sparse.bias, layer.bias)


def test_fan_in_is_refused_where_it_means_nothing():
    with pytest.raises(ValueError, match="init: 'fan_in' makes up for random weights"):
        sparsify(nn.Linear(8, 8), init="fan_in", keep="magnitude")
    with pytest.raises(ValueError, match="init: 'fan_in' rescales weights, and a layer on meta"):
        sparsify(nn.Linear(8, 8, device="meta"), init="fan_in")
    with pytest.raises(ValueError, match="init: unknown value 'fanin'; did you mean 'fan_in'"):
        sparsify(nn.Linear(8, 8), init="fanin")


class OwnNorm(nn.Module):
    """A package's own, known by its name alone."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return nn.functional.rms_norm(x, x.shape[-1:], self.weight)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm, OwnNorm])
def test_a_model_that_looks_trained_is_told_of_keep(norm):
    model = nn.Sequential(nn.Linear(8, 8), norm(8), nn.Linear(8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(model, 0.5)  # new
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match=r"looks trained \(1 has learned\).*keep='magnitude'"):
        sparsify(model, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(model, 0.5, keep="magnitude")
        sparsify(model, 0.5, keep="random")
