"""What a trace would take for always is a condition, or a reason to leave a forward as it is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.fused_models import Base, Counts, check_same, images, sparse_pair, step
from torch import nn

import dsr_kernels


class ByMode(Base):
    def forward(self, x):
        y = self.chain(x)
        return y if self.training else torch.softmax(y, 1)


class Dropped(Base):
    def forward(self, x):
        return F.dropout(self.chain(x), 1.0, self.training)


class WithFlag(Base):
    flag = 1

    def forward(self, x):
        y = self.chain(x)
        return y * 3 if self.flag == 2 else y


class WithDefault(Base):
    def forward(self, x, mask=None, *, scale=1):
        y = self.chain(x)
        if mask is not None:
            y = y * mask
        return y * scale


class WithRest(Base):
    def forward(self, x, *others, **named):
        y = self.chain(x)
        for other in others:
            y = y + other
        return y * named.get("scale", 1)


class WithShapes(Base):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.register_buffer("offset", torch.ones(4, 1, 1))

    def forward(self, x):
        y = self.chain(x) + self.position * 2 + self.offset
        return y.reshape(x.shape[0], -1), y.flatten(1).size(1)


class WithList(Base):
    def __init__(self) -> None:
        super().__init__()
        self.parts = [1, 2]

    def forward(self, x):
        y = self.chain(x)
        return y * sum(self.parts)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = Base(), Base()
        self.which = "inner"

    def forward(self, x):
        return getattr(self, self.which).chain(x)


TRACED = (ByMode, Dropped, WithFlag, WithDefault, WithRest, WithList, Unused)


@pytest.mark.parametrize("kind", TRACED)
def test_both_modes_agree_and_are_fused(kind, monkeypatch):
    fused, plain = sparse_pair(kind())
    for mode in (True, False, True):
        fused.train(mode), plain.train(mode)
        with monkeypatch.context() as patched:
            counts = Counts().install(patched)
            found = step(fused, images())
        assert counts["sparse_conv2d_fused"] > 0
        check_same(found, step(plain, images()), 1e-9)


def test_shapes_parameters_and_buffers_that_a_forward_uses(monkeypatch):
    fused, plain = sparse_pair(WithShapes())
    for count in (4, 2):
        a, b = fused(images(count=count)), plain(images(count=count))
        assert a[1] == b[1]
        torch.testing.assert_close(a[0], b[0], rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        for model in (fused, plain):
            model.position.add_(1), model.offset.add_(1)
    torch.testing.assert_close(fused(images())[0], plain(images())[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "kind,change",
    [
        (WithFlag, lambda m: setattr(m, "flag", 2)),
        (WithList, lambda m: m.parts.append(5)),
        (Unused, lambda m: setattr(m, "which", "other")),
        (ByMode, lambda m: m.eval()),
    ],
)
def test_attributes_that_a_forward_reads_count(kind, change):
    fused, plain = sparse_pair(kind())
    for model in (fused, plain):
        change(model)
    check_same(step(fused, images()), step(plain, images()), 1e-9)


def test_arguments_count():
    x, other = images(), torch.rand(12, 12, dtype=torch.float64)
    for kind, calls in (
        (WithDefault, [((x,), {}), ((x, other), {}), ((), {"x": x}), ((x,), {"scale": 3})]),
        (WithDefault, [((), {"x": x, "mask": other, "scale": 2})]),
        (WithRest, [((x,), {}), ((x, other, other), {}), ((x, other), {"scale": 3})]),
    ):
        fused, plain = sparse_pair(kind())
        for args, kwargs in calls:
            torch.testing.assert_close(fused(*args, **kwargs), plain(*args, **kwargs))
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
            fused()


def test_layers_that_are_not_fused_are_said():
    norms = nn.GroupNorm(1, 4), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 4, 1)
    more = nn.SiLU(), nn.GELU(), nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *norms, *more)
    report = dsr_kernels.fuse(dsr_kernels.sparsify(model, 0.5, preset="all"), verbose=False)
    notes = {row.what: row.note for row in report.left}
    assert notes["ReLU6"] == notes["SiLU"] == notes["GELU"] == "only ReLU is fused"
    assert notes["GroupNorm"] == notes["BatchNorm1d"] == "only BatchNorm2d is fused"
    assert notes["SparseLinear"] == "only two-dimensional convolutions are fused"


def test_what_is_written_to_is_left_alone():
    class Writing(Base):
        def forward(self, x):
            y = self.conv1(x)
            z = self.bn1(y)
            y += 1
            y[:, :2].mul_(3)
            z = z + torch.relu_(y)
            y = self.conv2(z)
            a = self.bn2(y)
            b = torch.relu_(a)
            return a + b + y.add_(1)

    fused, plain = sparse_pair(Writing())
    for mode in (True, False):
        fused.train(mode), plain.train(mode)
        with torch.no_grad():
            torch.testing.assert_close(fused(images()), plain(images()), rtol=1e-9, atol=1e-9)


def test_an_input_of_relu_may_be_written_to_before_backward():
    class Written(Base):
        def forward(self, x):
            y = self.conv1(x) + 0
            z = self.conv2(torch.relu(y))
            y.mul_(2)
            return z + y.mean()

    fused, plain = sparse_pair(Written())
    check_same(step(fused, images()), step(plain, images()), 1e-9)
    fused, plain = sparse_pair(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    for model in (fused, plain):
        x = images()
        y = model(x)
        x.add_(1)
        y.square().sum().backward()
    torch.testing.assert_close(fused[1].weight_values.grad, plain[1].weight_values.grad)


class Marked(torch.Tensor):
    """A tensor that says which functions it meets."""

    met: tuple = ()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        Marked.met += (func.__name__,)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_tensors_of_other_classes_meet_what_was_written():
    fused, plain = sparse_pair(WithFlag())
    seen = []
    for model in (fused, plain):
        Marked.met = ()
        model(images().as_subclass(Marked))
        seen.append(Marked.met)
    assert seen[0] == seen[1]
    assert "batch_norm" in seen[0]
