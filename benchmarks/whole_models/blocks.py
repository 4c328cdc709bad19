"""Training steps in blocks of output channels, in turn with unstructured and dense ones."""

from __future__ import annotations

from typing import Any

import torch

from dsr_kernels.bench.timing import Alternation
from whole_models.comparison import in_turn, warmed_up
from whole_models.training import Training
from whole_models.variants import Case, Variant, dense, fuse, precisions

BLOCK_SIZES = (1, 4, 8, 16)


def steps_record(case: Case, rounds: int, compiled: bool = True) -> dict[str, Any]:
    """Milliseconds of the fused step by block size and precision, and of every dense rival.

    Beside them the bytes of each model's weights and indices.
    """
    torch.manual_seed(0)
    torch.compiler.reset()
    images, labels, sparsity = case.images(), case.labels(), case.sparsities[0]
    trainings = {}
    for variant in dense(compiled):
        batch = images.to(**variant.format)
        trainings[variant.name] = Training(
            variant.model(case, 0.0), batch, labels, variant.autocast
        )
    for bf16 in precisions():
        variant = Variant("ours", bf16, fused=True)
        for size in BLOCK_SIZES:
            model = fuse(case.make(sparsity, block_size=size)).train()
            training = Training(model, images, labels, variant.autocast)
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


def in_blocks(name: str, size: int) -> str:
    """Of a run in blocks. It is no rival by dsr_kernels.bench.rivals, but for a size of 1."""
    return name if size == 1 else f"{name}, blocks of {size}"
