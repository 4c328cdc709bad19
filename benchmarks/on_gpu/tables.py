"""Tables, in Markdown, of a JSON that measure_gpu.py wrote.

PYTHONPATH=benchmarks python -m on_gpu.tables KEPT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import geometric_mean

from dsr_kernels.text_table import markdown

AT = 0.9  # the sparsity of columns that show one only
PAIRS = (  # ours in a dtype, over dense in a precision
    ("fp32", "fp32", "ours fp32 over dense fp32"),
    ("fp32", "tf32", "ours fp32 over dense TF32"),
    ("bf16", "bf16", "ours bf16 over dense bf16"),
)


def tables(kept: dict) -> str:
    parts = [", ".join(f"{name}: {value}" for name, value in kept["machine"].items())]
    if kept["layers"]:
        parts += [family_table(kept["layers"]), layer_table(kept["layers"])]
    if kept["training"]:
        parts.append(training_table(kept["training"]))
    if kept["other"]:
        parts.append(other_table(kept["other"]))
    if kept["left out"]:
        parts.append(left_out(kept))
    return "\n\n".join(parts)


def other_table(other: list[dict]) -> str:
    times = [(r["name"], r["ms"]["median"], r["ms"]["min"]) for r in other]
    rows = [[name, f"{median:.1f}", f"{fastest:.1f}"] for name, median, fastest in times]
    return markdown(["", "ms, median", "ms, fastest"], rows)


def left_out(kept: dict) -> str:
    return "Left out for want of time: " + ", ".join(kept["left out"])


def family_table(layers: list[dict]) -> str:
    """Geometric means of the speed-ups over a family's layers and operations."""
    sparsities = sorted({r["sparsity"] for r in layers})
    rows = []
    for family in dict.fromkeys(r["family"] for r in layers):
        for dtype, precision, words in PAIRS:
            means = mean_ratios(layers, family, dtype, precision)
            cells = [f"{means[s]:.2f}x" if s in means else "" for s in sparsities]
            rows.append([family, words, *cells])
    header = ["geometric means", "times as fast", *(f"{100 * s:g} %" for s in sparsities)]
    return markdown(header, rows)


def mean_ratios(layers: list[dict], family: str, dtype: str, precision: str) -> dict[float, float]:
    """The geometric mean of a family's speed-ups over dense, by sparsity."""
    ratios: dict[float, list[float]] = {}
    for r in layers:
        if (r["family"], r["dtype"]) == (family, dtype):
            ratios.setdefault(r["sparsity"], []).append(r["speed-up"][precision])
    return {sparsity: geometric_mean(ratios[sparsity]) for sparsity in sorted(ratios)}


def layer_table(layers: list[dict]) -> str:
    """A row for each layer and operation: microseconds, and the shares of the limits reached."""
    sparsities = sorted({r["sparsity"] for r in layers})
    at = AT if AT in sparsities else sparsities[0]
    by: dict[tuple[str, str], dict[tuple[str, float], dict]] = {}
    for r in layers:
        by.setdefault((r["layer"], r["operation"]), {})[r["dtype"], r["sparsity"]] = r
    header = ["µs, medians", "operation", "dense fp32", "TF32", "bf16"]
    header += [f"ours fp32 {100 * s:g} %" for s in sparsities]
    header += [f"ours bf16 {100 * at:g} %", f"GF/s {100 * at:g} %", "of shared memory", "GB/s"]
    header += ["of copy", "of roofline", "max error fp32, bf16"]
    rows = []
    for (layer, operation), found in by.items():
        one, low = found["fp32", at], found["bf16", at]
        dense = [one["speed-up"][p] * one["ms"]["ours"]["median"] for p in ("fp32", "tf32", "bf16")]
        ours = [found["fp32", s]["ms"]["ours"]["median"] for s in sparsities]
        times = [*dense, *ours, low["ms"]["ours"]["median"]]
        errors = {dtype: [] for dtype in ("fp32", "bf16")}
        for (dtype, _), record in found.items():
            errors[dtype].append(record["max error"])
        row = [
            layer,
            operation,
            *(f"{1e3 * ms:.1f}" for ms in times),
            f"{one['GF/s']:.0f}",
            _percent(one["share of shared memory"]),
            f"{one['GB/s']:.0f}",
            _percent(one["share of copy"]),
            _percent(one["share of roofline"]),
            ", ".join(f"{max(each):.0e}" for each in errors.values()),
        ]
        rows.append(row)
    return markdown(header, rows)


def training_table(training: list[dict]) -> str:
    """A row for each variant of a model's training step."""
    rows = []
    for r in training:
        graph = r["graph ms"]
        sparsity = f"{100 * r['sparsity']:g} %" if r["sparsity"] else ""
        row = [
            f"{r['model']}, batch {r['batch']}",
            r["variant"],
            sparsity,
            f"{r['ms']['median']:.2f}",
            graph if isinstance(graph, str) else f"{graph['median']:.2f}",
            f"{r['held bytes'] / 2**20:.1f}",
            f"{r['peak bytes'] / 2**20:.0f}",
        ]
        rows.append(row)
    header = ["training step", "", "sparsity", "ms, eager", "ms, CUDA graph"]
    header += ["MiB of weights, gradients, momentum", "peak MiB"]
    return markdown(header, rows)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


if __name__ == "__main__":
    print(tables(json.loads(Path(sys.argv[1]).read_text())))
