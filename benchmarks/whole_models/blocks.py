"""Training steps in blocks of output channels, beside unstructured, dense and thin dense ones.

A thin dense network has as many parameters as the sparse one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

import dsr_kernels
from dsr_kernels.bench.rivals import fastest
from dsr_kernels.bench.timing import Alternation
from dsr_kernels.models import thin_width
from whole_models.comparison import THIN, in_turn, warmed_up
from whole_models.training import Training
from whole_models.variants import Case, Variant, dense, precisions

BLOCK_SIZES = (1, 4, 8, 16)


def steps_record(case: Case, rounds: int, compiled: bool = True) -> dict[str, Any]:
    """Milliseconds of the fused step by block size and precision, and of every dense rival, thin
    ones too.

    Beside them the bytes of each model's weights and indices.
    """
    torch.manual_seed(0)
    torch.compiler.reset()
    images, labels, sparsity = case.images(), case.labels(), case.sparsities[0]
    trainings = {}
    for each, before in ((case, ""), (_thin(case, sparsity), THIN)):
        for variant in dense(compiled):
            batch, model = images.to(**variant.format), variant.model(each, 0.0)
            trainings[before + variant.name] = Training(model, batch, labels, variant.autocast)
    for bf16 in precisions():
        variant = Variant("ours", bf16, fused=True)
        for size in BLOCK_SIZES:
            model = case.make(sparsity=sparsity, block_size=size)
            dsr_kernels.fuse(model, verbose=False)
            training = Training(model.train(), images, labels, variant.autocast)
            trainings[in_blocks(variant.name, size)] = training
    steps, left_out = warmed_up({name: each.step for name, each in trainings.items()})
    alternation = Alternation(in_turn(steps))
    for _ in range(rounds):
        alternation.round()
    return {
        "model": case.name,
        "batch": case.batch,
        "sparsity": sparsity,
        "rounds": rounds,
        "left out": left_out,
        "milliseconds": alternation.milliseconds(),
        "weight bytes": {name: each.weight_bytes() for name, each in trainings.items()},
    }


def _thin(case: Case, sparsity: float) -> Case:
    """The case with its dense model made narrow."""

    def twin(width: float) -> torch.nn.Module:
        return case.make(sparse=False, device="meta", width=width)

    usual = case.make.keywords["width"]
    return case._replace(make=partial(case.make, width=thin_width(twin, usual, sparsity)))


def fastest_thin(milliseconds: Mapping[str, Mapping[str, float]], precision: str) -> str | None:
    """The name of the fastest thin dense run of a precision; None where there is none."""
    plain = {
        name.removeprefix(THIN): times
        for name, times in milliseconds.items()
        if name.startswith(THIN)
    }
    name = fastest(plain, "dense", precision)
    return None if name is None else THIN + name


def in_blocks(name: str, size: int) -> str:
    """Of a run in blocks. It is no rival by dsr_kernels.bench.rivals, but for a size of 1."""
    return name if size == 1 else f"{name}, blocks of {size}"
