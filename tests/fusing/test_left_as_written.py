"""Forwards that cannot be recorded rightly stay as they are, and fuse says why."""

from __future__ import annotations

import functools
import random
import subprocess
import sys

import pytest
import torch
from helpers.fused_models import Base, Counts, DenseNet, check_same, images, sparse_pair, step
from torch import nn
from torch.utils.checkpoint import checkpoint

import dsr_kernels


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


class Partial(Base):
    forward = functools.partialmethod(Base.chain)


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
    Partial: "is not a plain function",
}


@pytest.mark.parametrize("kind", NOT_TRACED)
def test_forwards_that_are_left_as_they_are(kind):
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), kind())
    dsr_kernels.sparsify(model, 0.5, inplace=True, preset="all")
    before = {name: vars(m).copy() for name, m in model.named_modules()}
    report = dsr_kernels.fuse(model, verbose=False)
    assert list(report.not_traced) == ["1"]
    assert report.not_traced["1"].startswith(NOT_TRACED[kind])
    assert report.not_traced["1"] in str(report)
    assert type(model[1]) is kind
    for name, module in model.named_modules():
        after = vars(module)
        assert after.keys() == before[name].keys()
        assert all(after[key] is before[name][key] for key in after)
    assert vars(model[1]).get("seen", []) == []
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
    model = dsr_kernels.sparsify(DenseNet(), 0.5, preset="all")
    calls = []
    model.features.denseblock1.register_forward_hook(lambda *_: calls.append(1))
    report = dsr_kernels.fuse(model, verbose=False)
    assert report.not_traced == {"features.denseblock1": "is inside of hooks"}
    assert "features.denseblock1.denselayer1.norm1" in [row.layer for row in report.fused]
    model(images(torch.float32))
    assert calls == [1]


IMPORTS_AT_FIRST_USE = """
import random, sys
import torch
from torch import nn
import dsr_kernels

class Hook:
    def find_spec(self, name, path=None, target=None):
        random.random()

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return self.conv(x) * torch.rand(1)

assert "torch._dynamo" not in sys.modules
model = dsr_kernels.sparsify(Block(), preset="all")
sys.meta_path.insert(0, Hook())
(why,) = dsr_kernels.fuse(model, verbose=False).not_traced.values()
print(why)
"""


class TwoCalls(nn.Module):
    """One activation, called after each of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm, self.act = nn.BatchNorm2d(8), nn.ReLU6()

    def forward(self, x):
        return self.act(self.two(self.act(self.norm(self.one(x)))))


def test_the_report_names_a_layer_once():
    report = dsr_kernels.fuse(dsr_kernels.sparsify(TwoCalls(), preset="all"), verbose=False)
    assert [(row.layer, row.note) for row in report.left] == [("act", "only ReLU is fused")]


def test_a_batch_norm_that_nothing_takes_in_is_said_to_stand_alone():
    chain = nn.Sequential(nn.Flatten(1, 1), nn.BatchNorm2d(3), nn.SiLU(), nn.Conv2d(3, 8, 3))
    (norm, _) = dsr_kernels.fuse(dsr_kernels.sparsify(chain, preset="all"), verbose=False).left
    assert norm.note == "alone: neither neighbour takes it in"


def test_a_model_with_nothing_to_fuse_is_told_so():
    chain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    text = str(dsr_kernels.fuse(dsr_kernels.sparsify(chain, preset="all"), verbose=False))
    assert text == "no batch norm and no sum was found to fuse\n0 fused, 0 left as they are"


def test_what_an_import_runs_is_not_taken_for_the_forward():
    """Torch imports some of its own at first use, and then others' import hooks run."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS_AT_FIRST_USE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "computes rand without its input\n"
