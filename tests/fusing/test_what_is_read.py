"""What a forward reads beside its input is a condition, or a reason to leave it as it is."""

from __future__ import annotations

import cProfile
import pickle
import time
from collections import OrderedDict
from random import Random, uniform

import pytest
import torch
from helpers import recorded_code
from helpers.fused_models import Base, check_same, images, sparse_pair, step
from torch import nn

import dsr_kernels

SEEN: list = []
FLAG = True
generator = Random(0)
now = time.time
no_gradients = torch.no_grad


class ByLayersMode(Base):
    def forward(self, x):
        return self.chain(x) * 2 if self.bn1.training else self.chain(x)


class ByLayersNumber(Base):
    def forward(self, x):
        return self.chain(x) * (2 if self.bn1.eps < 1 else 3)


class ByLayersKind(Base):
    def forward(self, x):
        return self.chain(x) * (2 if isinstance(self.bn2, nn.BatchNorm2d) else 3)


class ByGlobal(Base):
    def forward(self, x):
        return self.chain(x) * 2 if FLAG else self.chain(x)


class ByModulesGlobal(Base):
    def forward(self, x):
        y = self.chain(x)
        return recorded_code.by_flag(y) * 3 if recorded_code.flag else y


class ByClass(Base):
    doubled = True

    def forward(self, x):
        y = self.chain(x) * 2 if ByClass.doubled else self.chain(x)
        return y * 2 if recorded_code.Settings.double else y


class ByEnum(Base):
    def forward(self, x):
        return recorded_code.by_mode(self.chain(x))


class ByMissing(Base):
    def forward(self, x):
        y = self.chain(x) * 2 if hasattr(self, "extra") else self.chain(x)
        return y * getattr(self.bn1, "factor", 1)


class ByChildren(Base):
    def forward(self, x):
        return self.chain(x) * len(list(self.children())) * len(self.bn1._modules)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = self.two = Base()
        self.two.conv3 = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.two.chain(self.one.conv3(self.one.chain(x)))


def another_base(model):
    torch.manual_seed(4)
    model.two = dsr_kernels.sparsify(Base().double(), 0.5, preset="all")


CHANGES = [
    (ByLayersMode, lambda m: m.eval()),
    (ByLayersMode, lambda m: m.bn1.eval()),
    (ByLayersNumber, lambda m: setattr(m.bn1, "eps", 2.0)),
    (ByLayersKind, lambda m: setattr(m, "bn2", nn.Identity())),
    (ByMissing, lambda m: setattr(m, "extra", 1)),
    (ByMissing, lambda m: setattr(m.bn1, "factor", 3)),
    (ByChildren, lambda m: m.add_module("more", nn.ReLU())),
    (ByChildren, lambda m: m.bn1.add_module("more", nn.ReLU())),
    (Twice, another_base),
]


@pytest.mark.parametrize("kind,change", CHANGES)
def test_what_is_read_of_layers_and_modules_counts(kind, change):
    fused, plain = sparse_pair(kind())
    assert type(fused) is not kind
    check_same(step(fused, images()), step(plain, images()), 1e-9)
    for model in (fused, plain):
        change(model)
    check_same(step(fused, images()), step(plain, images()), 1e-9)


VARIABLES = [
    (ByGlobal, f"{__name__}.FLAG"),
    (ByModulesGlobal, "helpers.recorded_code.flag"),
    (ByClass, f"{__name__}.ByClass.doubled"),
    (ByClass, "helpers.recorded_code.Settings.double"),
    (ByEnum, "helpers.recorded_code.mode"),
]


@pytest.mark.parametrize("kind,variable", VARIABLES)
def test_variables_outside_of_modules_count(kind, variable, monkeypatch):
    fused, plain = sparse_pair(kind())
    assert type(fused) is not kind
    check_same(step(fused, images()), step(plain, images()), 1e-9)
    monkeypatch.setattr(variable, False)
    check_same(step(fused, images()), step(plain, images()), 1e-9)


def test_a_variable_counts_in_a_copy_and_compiled(monkeypatch):
    fused, plain = sparse_pair(ByModulesGlobal())
    copied = pickle.loads(pickle.dumps(fused))
    assert type(copied) is type(fused)
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    for flag in (True, False):
        monkeypatch.setattr(recorded_code, "flag", flag)
        for model in (copied, compiled):
            torch.testing.assert_close(model(images()), plain(images()), rtol=1e-9, atol=1e-9)


def test_fuse_within_a_profiler_leaves_it_running():
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        fused, _ = sparse_pair(ByGlobal())
        images()
    finally:
        profiler.disable()
    assert type(fused) is not ByGlobal
    assert "images" in {
        entry.code.co_name for entry in profiler.getstats() if hasattr(entry.code, "co_name")
    }


class Toggling(Base):
    def forward(self, x):
        self.bn1.train(False)
        return self.chain(x)


class Setting(Base):
    def forward(self, x):
        object.__setattr__(self.bn1, "eps", 1.0)
        return self.chain(x)


class Centred(Base):
    def forward(self, x):
        return recorded_code.centred(self.chain(x))


class Asking(Base):
    def forward(self, x):
        return recorded_code.by_gradients(self.chain(x))


class Listed(Base):
    def forward(self, x):
        return recorded_code.by_list(self.chain(x))


class Switching(Base):
    def forward(self, x):
        context = no_gradients()
        context.__enter__()
        y = self.chain(x)
        context.__exit__(None, None, None)
        return y


class Drawing(Base):
    def forward(self, x):
        return self.chain(x) * uniform(0, 1)


class DrawingOfOne(Base):
    def forward(self, x):
        return self.chain(x) * generator.gauss(0, 1)


class Timed(Base):
    def forward(self, x):
        return self.chain(x) * now()


class ByAnotherName(Base):
    def forward(self, x):
        settings = recorded_code.Settings
        return self.chain(x) * 2 if settings.double else self.chain(x)


class ByString(Base):
    def forward(self, x):
        return self.chain(x) * (2 if getattr(recorded_code.Settings, "double", None) else 3)


class OfAFunction(Base):
    def forward(self, x):
        return self.chain(x) * recorded_code.by_mode.factor


class ByDict(Base):
    def forward(self, x):
        return self.chain(x) * 2 if "extra" in self.__dict__ else self.chain(x)


class Ordered(Base):
    def forward(self, x):
        return OrderedDict(y=self.chain(x))


class Storing(Base):
    def forward(self, x):
        SEEN.append(self.chain(x))
        return SEEN[-1]


class StoringInItsClass(Base):
    kept: list = []  # noqa: RUF012

    def forward(self, x):
        self.kept.append(self.chain(x))
        return self.kept[-1]


def around(factor):
    class Around(Base):
        def forward(self, x):
            return self.chain(x) * factor

    return Around


LEFT = {
    Toggling: "calls train of a module|changes attributes",
    Setting: "changes attributes",
    Centred: "switches gradients|has a with statement",
    Asking: "asks whether gradients are on",
    Listed: "reads factors, a list",
    Switching: "switches gradients",
    Drawing: "reads uniform, a method",
    DrawingOfOne: "reads generator, a Random",
    Timed: "calls time, whose answer",
    ByAnotherName: "goes on with Settings",
    ByString: "goes on with Settings",
    OfAFunction: "reads recorded_code.by_mode.factor",
    ByDict: "reads its attributes as a dict",
    Ordered: "hands on an object of type OrderedDict",
    Storing: "reads SEEN, a list",
    StoringInItsClass: "changes attributes",
    around(3): "reads factor of a scope",
}


@pytest.mark.parametrize("kind", LEFT)
def test_forwards_that_are_left_as_they_are(kind):
    model = dsr_kernels.sparsify(kind(), 0.5, preset="all")
    report = dsr_kernels.fuse(model, verbose=False)
    assert type(model) is kind
    reason = report.not_traced["the model"]
    assert any(reason.startswith(start) for start in LEFT[kind].split("|")), reason
    assert all(
        module.training and getattr(module, "eps", 1e-5) == 1e-5 for module in model.modules()
    )
    assert torch.is_grad_enabled()
    assert [] == SEEN == StoringInItsClass.kept
