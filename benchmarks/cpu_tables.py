"""What a CPU measured, as docs/measured.md shows it, from the kept JSON.

python benchmarks/cpu_tables.py KEPT.json KEPT-with-avx2-forced.json docs/measured.md

writes the table between two marks of the page.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gpu.pages import renew
from gpu.tables import markdown
from layers import SPARSITIES
from targets import break_even

BEGIN, END = "<!-- measured on a CPU: made by `make cpu-tables` -->", "<!-- end of CPU -->"
AT = 0.9  # the sparsity of the column with AVX2 forced
HEADER = (
    "forward + backward through the module, times as fast as dense, at a sparsity of",
    *(f"{100 * sparsity:g} %" for sparsity in SPARSITIES),
    f"{100 * AT:g} %, AVX2 forced",
    "faster than dense from",
)


def table(kept: dict, avx2: dict) -> str:
    """Markdown: a row per layer and per model's training step."""
    forced = _speed_ups(avx2["layers"], "layer")
    lowest = {r["layer"] for r in kept["layers"] if r["sparsity"] < min(SPARSITIES)}
    rows = []
    for (layer, batch), ratios in _speed_ups(kept["layers"], "layer").items():
        point = f"{break_even(kept['layers'], layer):.0%}" if layer in lowest else ""
        last = [f"{forced[layer, batch][AT]:.1f}x", point.replace("%", " %")]
        name = layer.replace("->", "→")
        rows.append([f"{name}, N={batch}", *_cells(ratios), *last])
    for (model, batch), ratios in _speed_ups(kept["training"], "model").items():
        rows.append([f"whole {model} training step, N={batch}", *_cells(ratios), "", ""])
    return markdown(list(HEADER), rows)


def _speed_ups(records: list[dict], key: str) -> dict[tuple[str, int], dict[float, float]]:
    """(name, batch) -> sparsity -> speed-up, of whole modules or models."""
    found: dict[tuple[str, int], dict[float, float]] = {}
    for r in records:
        if r.get("operation", "module") == "module":
            found.setdefault((r[key], r["batch"]), {})[r["sparsity"]] = r["speed-up"]
    return found


def _cells(ratios: dict[float, float]) -> list[str]:
    return [f"{ratios[s]:.1f}x" if s in ratios else "" for s in SPARSITIES]


def main(kept: Path, avx2: Path, page: Path) -> None:
    read = (json.loads(path.read_text(encoding="utf-8")) for path in (kept, avx2))
    renew(page, BEGIN, END, table(*read))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
