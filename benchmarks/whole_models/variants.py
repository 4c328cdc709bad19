"""What is compared: the models, and every way to run each of them, dense and ours.

A variant's name is what dsr_kernels.bench.rivals reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import nn
from torch.fx.experimental import optimization

import dsr_kernels
from dsr_kernels.bench.problem import LAST
from dsr_kernels.bench.rivals import bf16_here
from dsr_kernels.models import resnet50, wrn_28


class Case(NamedTuple):
    """A model with the batch that it is measured on."""

    name: str
    make: partial[nn.Module]
    batch: int
    size: int  # of an image
    classes: int
    sparsities: tuple[float, ...] = (0.9,)

    def images(self) -> torch.Tensor:
        return torch.randn(self.batch, 3, self.size, self.size)

    def labels(self) -> torch.Tensor:
        return torch.randint(0, self.classes, (self.batch,))


WRN = Case("WRN-28-2", partial(wrn_28, width=2), 128, 32, 10)
RESNET = Case("ResNet-50", partial(resnet50, width=1.0), 16, 224, 1000)


class Variant(NamedTuple):
    """One way to run a model."""

    side: str  # "dense" or "ours"
    bf16: bool = False  # torch.autocast in bfloat16
    last: bool = False  # channels_last, of dense
    folded: bool = False  # dense, for inference: batch norm in the convolutions before it
    compiled: bool = False  # torch.compile
    fused: bool = False  # dsr_kernels.fuse, of ours

    @property
    def name(self) -> str:
        layout = ("channels_last" if self.last else "NCHW") if self.side == "dense" else ""
        words = (self.side, "bf16" if self.bf16 else "", layout)
        done = [what for what in ("folded", "compiled", "fused") if getattr(self, what)]
        return ", ".join([" ".join(filter(None, words)), *done])

    @property
    def format(self) -> dict[str, torch.memory_format]:
        return LAST if self.last else {}

    def model(self, case: Case, sparsity: float, training: bool = True) -> nn.Module:
        """A model of the case as this variant runs it. Dense ones have no sparsity."""
        if self.side == "ours":
            model = case.make(sparsity=sparsity)
            if self.fused:
                dsr_kernels.fuse(model, verbose=False)
            model.train(training)
        else:
            model = case.make(sparse=False).train(training)
            if self.folded:
                model = optimization.fuse(model)
            model = model.to(**self.format)
        # fullgraph: a model that dynamo gives up on is an error, not an eager run by that name.
        return torch.compile(model, fullgraph=True) if self.compiled else model

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)


def precisions() -> tuple[bool, ...]:
    """bfloat16 or not: float32, and bfloat16 where oneDNN takes it."""
    return (False, True) if bf16_here() else (False,)


def ours(compiled: bool = False) -> Iterator[Variant]:
    """Every way of ours: precision, fused or not, and eager or compiled."""
    for bf16, fused, through in product(precisions(), (False, True), (False, True)):
        if compiled or not through:
            yield Variant("ours", bf16, fused=fused, compiled=through)


def dense(compiled: bool, folded: bool = False) -> Iterator[Variant]:
    """Every dense rival: precision, memory format, and eager or compiled."""
    for bf16, last, through in product(precisions(), (False, True), (False, True)):
        if compiled or not through:
            yield Variant("dense", bf16, last, folded, through)
