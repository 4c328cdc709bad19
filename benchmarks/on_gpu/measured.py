"""What a GPU measured, as docs/measured.md and docs/cuda.md show it, from the kept JSON.

PYTHONPATH=benchmarks python -m on_gpu.measured KEPT.json docs/measured.md docs/cuda.md

writes the tables between two marks of either page. Dense is the faster of its memory formats.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import geometric_mean
from textwrap import fill

from layers import FAMILIES
from pages import renew

from dsr_kernels.text_table import markdown

from .layers import best
from .model import GPUS, microseconds
from .tables import (
    AT,
    PAIRS,
    family_table,
    left_out,
    mean_ratios,
    other_table,
    training_table,
)

BEGIN, END = "<!-- measured: made by `make gpu-tables` -->", "<!-- end of measured -->"
COLUMNS = 100  # of a page
OPERATIONS = ("forward", "grad_input", "grad_weight")
MODELLED = GPUS["H100"]  # an H200's multiprocessors, clocks and shared memory
ELEMENT_SIZES = {"fp32": 4, "bf16": 2}
STEPS = {"WRN-28-2": (0.9, 0.95), "ResNet-50": (0.9,)}
Found = dict[tuple[str, str, str], dict]


def at_90(kept: dict) -> Found:
    """Records of layers at 90 %, by layer, operation and dtype."""
    records = (r for r in kept["layers"] if r["sparsity"] == AT)
    return {(r["layer"], r["operation"], r["dtype"]): r for r in records}


def details(kept: dict) -> str:
    """The part of docs/cuda.md."""
    found = at_90(kept)
    parts = [family_table(kept["layers"]), layer_table(found), training_table(kept["training"])]
    parts += [other_table(kept["other"]), fill(left_out(kept), COLUMNS), model_table(found)]
    return "\n\n".join(parts)


def layer_table(found: Found) -> str:
    """A row per layer, three numbers to a cell."""
    header = ["µs at 90 %: forward / grad-input / grad-weight", "ours fp32", "dense fp32"]
    header += ["dense TF32", "ours bf16", "dense bf16", "% of shared memory's"]
    header += ["% of roofline"]
    rows = []
    for layer in (layer for layers in FAMILIES.values() for layer in layers):
        fp32, bf16 = ([found[str(layer), o, d] for o in OPERATIONS] for d in ("fp32", "bf16"))
        rows.append(
            [
                f"{layer}, N={fp32[0]['batch']}",
                _cell(1e3 * r["ms"]["ours"]["median"] for r in fp32),
                *(_cell(1e3 * best(r["ms"], p) for r in fp32) for p in ("fp32", "tf32")),
                _cell(1e3 * r["ms"]["ours"]["median"] for r in bf16),
                _cell(1e3 * best(r["ms"], "bf16") for r in bf16),
                _cell(100 * r["share of shared memory"] for r in fp32),
                _cell(100 * r["share of roofline"] for r in fp32),
            ]
        )
    return markdown(header, rows)


def _cell(values) -> str:
    return " / ".join(f"{value:.0f}" for value in values)


def model_table(found: Found) -> str:
    """Measured over modelled times of the layers: geometric means and ranges."""
    rows = []
    for dtype, size in ELEMENT_SIZES.items():
        ratios: dict[str, list[float]] = {operation: [] for operation in OPERATIONS}
        for layer in (layer for layers in FAMILIES.values() for layer in layers):
            for operation, modelled in zip(
                OPERATIONS, microseconds(layer, MODELLED, size), strict=True
            ):
                record = found[str(layer), operation, dtype]
                assert record["batch"] == layer.batch, f"{layer}: measured with another batch"
                ratios[operation].append(1e3 * record["ms"]["ours"]["median"] / modelled)
        gathers = ratios["forward"] + ratios["grad_input"]
        rows.append([dtype, _range(gathers), _range(ratios["grad_weight"])])
    header = ["measured over modelled at 90 %", "forward and grad-input", "grad-weight"]
    return markdown(header, rows)


def _range(ratios: list[float]) -> str:
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def summary(kept: dict) -> str:
    """The part of docs/measured.md: the families, and whole steps in CUDA graphs."""
    sparsities = sorted({r["sparsity"] for r in kept["layers"]})
    header = ["times as fast as dense at " + " / ".join(f"{100 * s:g}" for s in sparsities) + " %"]
    header += [words for _, _, words in PAIRS]
    rows = []
    for family in FAMILIES:
        means = [mean_ratios(kept["layers"], family, dtype, p) for dtype, p, _ in PAIRS]
        rows.append([family, *(_ratios(m.values()) for m in means)])
    for model, at in STEPS.items():
        row = [f"{model} training step, {' / '.join(f'{100 * s:g}' for s in at)} %"]
        rows.append(row + [_steps(kept["training"], model, p, at) for _, p, _ in PAIRS])
    return markdown(header, rows)


def step_ratios(
    training: list[dict], model: str, precision: str, at: tuple[float, ...]
) -> list[float] | None:
    """Dense over ours, each in its precision, both from CUDA graphs.

    None where the model has no dense step in this precision.
    """
    times: dict[tuple[str, float], list[float]] = {}
    for r in (r for r in training if r["model"] == model):
        kind = " ".join(r["variant"].split()[:2])
        times.setdefault((kind, r["sparsity"]), []).append(r["graph ms"]["median"])
    dense = times.get((f"dense {precision}", 0))
    if dense is None:
        return None
    return [min(dense) / min(times[f"ours {precision}", s]) for s in at]


def _steps(*what) -> str:
    ratios = step_ratios(*what)
    return "not measured" if ratios is None else _ratios(ratios)


def _ratios(values) -> str:
    return " / ".join(f"{value:.2f}" if value < 1 else f"{value:.1f}" for value in values)


def main(path: Path, overview: Path, page: Path) -> None:
    kept = json.loads(path.read_text(encoding="utf-8"))
    renew(overview, BEGIN, END, summary(kept))
    renew(page, BEGIN, END, details(kept))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
