"""A model of a ResNet-50 step on 8 to 256 GPUs, 90 % sparse beside dense: no such machine was here.

python benchmarks/distributed_model.py benchmarks/results/h200.json docs/distributed.md

writes the table between two marks of the page. What it supposes:

- A GPU's own step is the median of an H200's CUDA graph in the JSON. That of dense TF32 and bf16
  was not measured for ResNet-50: dense fp32's is divided by what the precision gained a dense
  WRN-28-2 there.
- The backward pass is two thirds of a step, for it has two of a layer's three passes. A layer's
  share of it is that of its dense multiply-adds.
- Gradients are cut into buckets as torch cuts them, in the order of the backward pass. One is sent
  when it is full and the one before has been sent. The step ends when all have come.
- Sending is a ring over all GPUs, each with a link of its own at the rate given: `ring_ms`. Each
  side has the better of two sizes of buckets, CAPS_MB.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from pages import renew
from torch import nn

from dsr_kernels.models import resnet50
from dsr_kernels.text_table import markdown

BEGIN = "<!-- modelled: made by `make distributed-model` -->"
END = "<!-- end of modelled -->"
MODEL, SPARSITY, SIZE = "ResNet-50", 0.9, 224
BACKWARD = 2 / 3  # of a step
HOP_MS = 0.005  # supposed: between neighbours of the ring, above what the bytes take
CAPS_MB = 25, 5  # of buckets: torch's default, and what overlaps more of ours
FIRST_BUCKET = 1 << 20  # with torch's default, so that sending begins soon
GPUS = (8, 64, 256)
GIGABITS = (25, 100, 400)


class Precision(NamedTuple):
    words: str
    name: str  # in the JSON, after "ours" and "dense"
    bytes: int  # of a value that is sent


PRECISIONS = (
    Precision("fp32", "fp32", 4),
    Precision("TF32", "tf32", 4),
    Precision("bf16, sent as bf16", "bf16", 2),
)


class Gradient(NamedTuple):
    numbers: int
    ready: float  # the share of the backward pass after which it is there


def ring_ms(count: int, gpus: int, gigabits: float) -> float:
    """Of an all-reduce of `count` bytes: each GPU sends 2 (p - 1) / p of them in 2 (p - 1) hops."""
    hops = 2 * (gpus - 1)
    return hops / gpus * count * 8 / (gigabits * 1e6) + hops * HOP_MS


def buckets(gradients: list[Gradient], cap_mb: float) -> list[Gradient]:
    """As torch's reducer puts gradients together; a bucket is ready when its last gradient is."""
    made, numbers = [], 0
    limit = FIRST_BUCKET if cap_mb == CAPS_MB[0] else cap_mb * 2**20
    for index, gradient in enumerate(gradients):
        numbers += gradient.numbers
        if 4 * numbers >= limit or index == len(gradients) - 1:
            made.append(Gradient(numbers, gradient.ready))
            numbers, limit = 0, cap_mb * 2**20
    return made


def step_ms(
    alone: float, sent: list[Gradient], number_bytes: int, gpus: int, gigabits: float
) -> float:
    """Of a step that takes `alone` milliseconds on one GPU."""
    backward = BACKWARD * alone
    end = 0.0  # of what has been sent, since the backward pass began
    for bucket in sent:
        start = max(end, bucket.ready * backward)
        end = start + ring_ms(number_bytes * bucket.numbers, gpus, gigabits)
    return alone - backward + max(backward, end)


def gradients_of(model: nn.Module, shares: dict[str, float]) -> list[Gradient]:
    """In the order of the backward pass."""
    found, done = [], 0.0
    for name, module in reversed(list(model.named_modules())):
        done += shares.get(name, 0.0)
        own = reversed(list(module.parameters(recurse=False)))
        found += [Gradient(parameter.numel(), done) for parameter in own]
    return found


def backward_shares(model: nn.Module) -> dict[str, float]:
    """The layers' parts of a dense model's multiply-adds, by name. The model is on `meta`."""
    counted: dict[str, float] = {}

    def count(name: str, module: nn.Module, result: torch.Tensor) -> None:
        counted[name] = result.numel() * module.weight[0].numel()

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda module, _, result, name=name: count(name, module, result)
            )
    model(torch.empty(1, 3, SIZE, SIZE, device="meta"))
    return {name: each / sum(counted.values()) for name, each in counted.items()}


def alone_ms(kept: dict, side: str, precision: str) -> float:
    """A step of one GPU: measured, or dense fp32's over what the precision gained a WRN-28-2."""
    measured = _fastest(kept, MODEL, side, precision)
    if measured is not None:
        return measured
    gained = _fastest(kept, "WRN-28-2", side, "fp32") / _fastest(kept, "WRN-28-2", side, precision)
    return _fastest(kept, MODEL, side, "fp32") / gained


def _fastest(kept: dict, model: str, side: str, precision: str) -> float | None:
    sparsity = SPARSITY if side == "ours" else 0
    taken = [
        record["graph ms"]["median"]
        for record in kept["training"]
        if (record["model"], record["sparsity"]) == (model, sparsity)
        and record["variant"].startswith(f"{side} {precision}")
    ]
    return min(taken, default=None)


def rows(kept: dict) -> Iterator[list[str]]:
    with torch.device("meta"):
        dense = resnet50(sparse=False)
    shares = backward_shares(dense)
    sides = gradients_of(resnet50(SPARSITY), shares), gradients_of(dense, shares)
    for precision in PRECISIONS:
        alone = [alone_ms(kept, side, precision.name) for side in ("ours", "dense")]
        megabytes = (precision.bytes * sum(g.numbers for g in side) / 1e6 for side in sides)
        sizes = " / ".join(f"{size:.1f}" for size in megabytes)
        for gigabits in GIGABITS:
            cells = [precision.words, sizes, str(gigabits), _cell(*alone)]
            for gpus in GPUS:
                link = precision.bytes, gpus, gigabits
                taken = [
                    [step_ms(ms, buckets(side, cap), *link) for cap in CAPS_MB]
                    for ms, side in zip(alone, sides, strict=True)
                ]
                cells.append(_cell(*map(min, taken)))
            yield [*cells, f"{taken[0][0]:.0f}"]


def _cell(ours: float, dense: float) -> str:
    """Milliseconds, and how many times as fast ours is."""
    ratio = f"*{dense / ours:.2f}*" if dense < ours else f"{dense / ours:.2f}"
    return f"{ours:.0f} / {dense:.0f}: {ratio}"


def table(kept: dict) -> str:
    header = ["ms, modelled: ours / dense", "MB that are averaged", "Gb/s", "1 GPU"]
    header += [*(f"{gpus} GPUs" for gpus in GPUS), f"ours, {CAPS_MB[0]} MB buckets, {GPUS[-1]}"]
    return markdown(header, list(rows(kept)))


if __name__ == "__main__":
    result, page = map(Path, sys.argv[1:])
    renew(page, BEGIN, END, table(json.loads(result.read_text(encoding="utf-8"))))
