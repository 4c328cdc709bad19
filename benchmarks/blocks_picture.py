"""Accuracy beside speed: what blocks of output channels cost and what they buy, in one picture.

    python benchmarks/blocks_picture.py KEPT-blocks.json results.csv picture.png

The milliseconds of a step and the bytes of the weights come from a JSON of measure_blocks.py,
accuracies from the results of `dsr experiment blocks`: methods such as dsr_16 and
dsr_16_exact are in blocks of 16.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure
from whole_models.blocks import fastest_thin, in_blocks
from whole_models.variants import Variant

from dsr_kernels.bench.rivals import fastest
from dsr_kernels.training.report import style

OURS = Variant("ours", bf16=True, fused=True).name
COLORS = {
    "dense": style.GREY,
    "thin": style.GREY,
    "static": style.GREEN,
    "dsr": style.BLUE,
    "rigl": style.ORANGE,
}


def variant_of(method: str, taken: dict) -> str | None:
    """What `method` trains with, as the JSON names it, in bfloat16; None where it has no such."""
    if method == "dense":
        return fastest(taken, "dense", "bf16")
    if method == "thin_dense":
        return fastest_thin(taken, "bf16")
    name, size = [*method.split("_"), "1"][:2]
    if name not in COLORS or not size.isdigit():
        return None
    variant = in_blocks(OURS, int(size))
    return variant if variant in taken else None


def accuracies(rows: list[dict], sparsity: float) -> dict[str, list[float]]:
    """Test accuracies in percent by method, one for each seed, at the sparsity that was timed."""
    found = defaultdict(list)
    for row in rows:
        at = float(row["sparsity"] or sparsity)
        if row["status"] == "done" and at == sparsity:
            found[row["method"]].append(100 * float(row["test_accuracy"]))
    return dict(found)


def draw(kept: dict, rows: list[dict]) -> Figure:
    (record,) = kept["steps"]
    taken, stored = record["milliseconds"], record["weight bytes"]
    figure = Figure(figsize=(9.6, 4.4), dpi=130, layout="constrained")
    by_time, by_bytes = figure.subplots(1, 2, sharey=True)
    for method, found in accuracies(rows, record["sparsity"]).items():
        variant = variant_of(method, taken)
        if variant is None:
            continue
        color = COLORS[method.partition("_")[0]]
        for axes, cost in (
            (by_time, taken[variant]["min"]),
            (by_bytes, stored[variant] / 2**20),
        ):
            axes.plot([cost] * len(found), found, "o", color=color, ms=4, alpha=0.5)
            mean = statistics.mean(found)
            axes.plot([cost], [mean], "_", color=color, ms=14, mew=2)
            axes.annotate(method, (cost, mean), xytext=(8, -3), textcoords="offset points")
    by_time.set_xlabel(f"ms of a training step, batch {record['batch']}, bf16, fused where sparse")
    by_bytes.set_xlabel("MiB of weights and indices")
    by_time.set_ylabel("test accuracy (%)")
    for axes in (by_time, by_bytes):
        axes.set_xlim(0, 1.3 * axes.dataLim.xmax)  # room for names
    machine = f"{kept['machine']['cpu']}, {kept['machine']['threads']} threads"
    title = f"{record['model']} at {record['sparsity']:.0%}: each seed, and the mean; {machine}"
    figure.suptitle(title, weight="bold", fontsize=11)
    return figure


if __name__ == "__main__":
    result, table, picture = map(Path, sys.argv[1:])
    with style.drawing("this picture"), table.open(newline="") as file:
        rows = list(csv.DictReader(file))
        picture.write_bytes(style.png(draw(json.loads(result.read_text()), rows)))
