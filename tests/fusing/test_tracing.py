"""What a trace would take for always is a condition, or a reason to leave a forward as it is."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from helpers.fused_models import Counts, DenseNet, check_same, images, sparse_pair, step
from torch import nn
from torch.utils.checkpoint import checkpoint

import dsr_kernels

SCALE = 2


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def chain(self, x):
        return self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))


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


class WithContext(Base):
    def forward(self, x):
        with torch.no_grad():
            return self.chain(x)


class Decorated(Base):
    @torch.no_grad()
    def forward(self, x):
        return self.chain(x)


class Counting(Base):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.chain(x)


class Random(Base):
    def forward(self, x):
        return self.chain(x) * random.random()


class RandomTensor(Base):
    def forward(self, x):
        return self.chain(x) * (torch.rand(1).item() + 1)


class Asking(Base):
    def forward(self, x):
        return self.chain(x) if torch.is_grad_enabled() else x


class ByShape(Base):
    def forward(self, x):
        return self.chain(x) if x.shape[0] > 2 else x


class Checkpointed(Base):
    def forward(self, x):
        return checkpoint(self.chain, x, use_reentrant=False)


class Remembering(Base):
    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return self.chain(x)


class Constant(Base):
    def __init__(self) -> None:
        super().__init__()
        self.constant = torch.ones(1)

    def forward(self, x):
        return self.chain(x) + self.constant


def helper(x):
    print("called")
    return x


class Calling(Base):
    def forward(self, x):
        return helper(self.chain(x))


NOT_TRACED = {
    WithContext: "switches gradients",
    Decorated: "has a with statement",
    Counting: "sets attributes",
    Random: "draws random numbers",
    RandomTensor: "computes rand without its input",
    Asking: "asks whether gradients are on",
    ByShape: "cannot be recorded",
    Checkpointed: "calls checkpoint",
    Remembering: "changes attributes",
    Constant: "uses a tensor that is neither",
    Calling: "prints",
}


@pytest.mark.parametrize("kind", NOT_TRACED)
def test_forwards_that_are_left_as_they_are(kind):
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), kind())
    dsr_kernels.sparsify(model, 0.5, inplace=True)
    before = {name: vars(m).copy() for name, m in model.named_modules()}
    report = dsr_kernels.fuse(model, verbose=False)
    assert list(report.not_traced) == ["1"]
    assert report.not_traced["1"].startswith(NOT_TRACED[kind])
    assert report.not_traced["1"] in str(report)
    assert type(model[1]) is kind
    for name, module in model.named_modules():
        after = vars(module)
        assert after.keys() == before[name].keys()
        assert all(after[key] is before[name][key] for key in after if key != "seen")
    assert "0.1" in [row.layer for row in report.fused]  # what is beside it is fused
    assert model(images(torch.float32)).shape[0] == 4


def test_blocks_in_a_forward_that_cannot_be_traced_are_fused(monkeypatch):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Sequential(Base().conv1, nn.BatchNorm2d(4))])

        def forward(self, x):
            if x.sum() > -1e9:
                x = self.blocks[0](x)
            return x

    fused, plain = sparse_pair(Outer())
    counts = Counts().install(monkeypatch)
    found = step(fused, images())
    assert counts["sparse_conv2d_fused"] == 1
    check_same(found, step(plain, images()), 1e-9)


def test_a_module_with_hooks_is_called_as_it_is():
    torch.manual_seed(0)
    model = dsr_kernels.sparsify(DenseNet(), 0.5)
    calls = []
    model.features.denseblock1.register_forward_hook(lambda *_: calls.append(1))
    report = dsr_kernels.fuse(model, verbose=False)
    assert report.not_traced == {"features.denseblock1": "is inside of hooks"}
    assert "features.denseblock1.denselayer1.norm1" in [row.layer for row in report.fused]
    model(images(torch.float32))
    assert calls == [1]


def test_layers_that_are_not_fused_are_said():
    norms = nn.GroupNorm(1, 4), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 4, 1)
    more = nn.SiLU(), nn.GELU(), nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *norms, *more)
    report = dsr_kernels.fuse(dsr_kernels.sparsify(model, 0.5), verbose=False)
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
