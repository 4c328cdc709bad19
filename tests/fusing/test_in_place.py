"""What is written to in place has the shape, dtype and versions that it has unfused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.fused_models import Base, check_same, images, sparse_pair, step
from torch import nn

METHODS = {"+=": lambda y, x: y.__iadd__(x), "add_": lambda y, x: y.add_(x)}


class Adding(Base):
    def __init__(self, method, where):
        super().__init__()
        self.add, self.where = METHODS[method], where

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        if self.where == "norm":
            y = self.add(y, x[:, :1, 2:, 2:])
        elif self.where == "pooled":
            y = self.add(self.bn2(self.conv2(F.adaptive_avg_pool2d(y, 3))), y)
        else:
            y = self.add(self.conv2(F.pad(torch.relu(y), (1, 1, 1, 1))), x[:, :1, 2:, 2:])
        return torch.relu(y)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["norm", "conv"])
def test_a_sum_in_place_has_the_dtype_of_its_left_side(method, where):
    fused, plain = sparse_pair(Adding(method, where))
    assert type(fused) is not Adding
    check_same(step(fused, images()), step(plain, images()), 1e-9)
    fused.float(), plain.float()
    for mode in (True, False):
        fused.train(mode), plain.train(mode)
        with torch.autocast("cpu", torch.bfloat16):
            a, b = fused(images(torch.float32)), plain(images(torch.float32))
        assert a.dtype == b.dtype == torch.bfloat16
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_sum_in_place_has_the_shape_of_its_left_side(method):
    fused, plain = sparse_pair(Adding(method, "pooled"))
    assert type(fused) is not Adding
    for model in (fused, plain):
        for mode in (True, False):
            with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
                model.train(mode)(images())


def test_an_input_of_relu_that_is_written_to_after_a_convolution_read_it():
    class Written(Base):
        def forward(self, x):
            n = self.bn1(self.conv1(x))
            y = self.conv2(n.relu())
            n.mul_(2)
            return self.bn2(y) + n.mean()

    fused, plain = sparse_pair(Written())
    check_same(step(fused, images()), step(plain, images()), 1e-9)


def test_a_fused_model_that_inference_mode_made_trains_there():
    fused, plain = sparse_pair(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    with torch.inference_mode():
        fused, plain = copy.deepcopy(fused), copy.deepcopy(plain)
        torch.testing.assert_close(fused(images()), plain(images()))
    torch.testing.assert_close(fused[1].running_var, plain[1].running_var)


class Over(Base):
    """In-place ReLUs and sums over a layer whose input others use, too."""

    def __init__(self, layer):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(4, 4, 3, 1, 1)
        self.layer = layer

    def forward(self, x):
        h = self.conv1(x)
        z = self.bn2(h)
        y = getattr(self, self.layer)(h)
        y += 0 * h
        y = self.relu(y)
        return self.conv2(y).mean() + self.conv2(z).mean() + self.conv3(h)


class Doubling(nn.Module):
    def forward(self, x):
        return x.mul_(2)


CHANGES = {
    "no layer": lambda m, name: setattr(m, name, nn.Identity()),
    "a layer that writes": lambda m, name: setattr(m, name, Doubling()),
    "a forward": lambda m, name: setattr(getattr(m, name), "forward", lambda x: x),
    "a hook": lambda m, name: getattr(m, name).register_forward_hook(lambda m, x, y: x[0]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("layer", ["bn1", "conv3"])
def test_a_layer_that_comes_to_hand_on_its_input_before_a_write(layer, change):
    fused, plain = sparse_pair(Over(layer))
    assert type(fused) is not Over
    for model in (fused, plain):
        CHANGES[change](model, layer)
    for mode in (True, False):
        fused.train(mode), plain.train(mode)
        with torch.no_grad():
            torch.testing.assert_close(fused(images()), plain(images()), rtol=1e-9, atol=1e-9)


class Between(Base):
    """A value stays unmade while another layer runs on what it is made of."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(1)

    def forward(self, x):
        h = self.conv1(x)
        z = self.bn1(h)
        y = self.pool(h)
        return self.conv2(z).mean() + y


def writing_hook(layer):
    layer.register_forward_pre_hook(lambda m, x: (x[0].mul_(2),))


@pytest.mark.parametrize("change", ["layer", "hook", "hook before"])
def test_a_layer_that_comes_to_write_while_a_value_waits(change):
    model = Between()
    if change == "hook before":
        writing_hook(model.pool)
    fused, plain = sparse_pair(model)
    for model in (fused, plain):
        if change == "layer":
            model.pool = Doubling()
        elif change == "hook":
            writing_hook(model.pool)
    for mode in (True, False):
        fused.train(mode), plain.train(mode)
        with torch.no_grad():
            torch.testing.assert_close(fused(images()), plain(images()), rtol=1e-9, atol=1e-9)
