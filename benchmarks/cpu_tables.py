"""What a CPU measured, as docs/measured.md shows it, from the kept JSON.

python benchmarks/cpu_tables.py KEPT.json KEPT-with-avx2-forced.json docs/measured.md

writes the table between two marks of the page.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from layers import SPARSITIES
from on_gpu.tables import markdown
from pages import renew
from targets import break_even

BEGIN, END = "<!-- measured on a CPU: made by `make cpu-tables` -->", "<!-- end of CPU -->"
AT = 0.9  # the sparsity of the column with AVX2 forced
HEADER = (
    "forward + backward through the module, times as fast as dense, at a sparsity of",
    *(f"{100 * sparsity:g} %" for sparsity in SPARSITIES),
    f"{100 * AT:g} %, AVX2 forced",
    "faster than dense from",
)
OVER_BEST = f"{100 * AT:g} %, over the best dense of the machine"  # where it was measured


def table(kept: dict, avx2: dict) -> str:
    """Markdown: a row per layer and per model's training step."""
    forced = _ratios(avx2["layers"], "layer")
    lowest = {r["layer"] for r in kept["layers"] if r["sparsity"] < min(SPARSITIES)}
    over_best = _ratios(kept["layers"], "layer", "over best dense")
    over_best |= _ratios(kept["training"], "model", "over best dense")
    rows = []
    for (layer, batch), ratios in _ratios(kept["layers"], "layer").items():
        point = f"{break_even(kept['layers'], layer):.0%}" if layer in lowest else ""
        last = [f"{forced[layer, batch][AT]:.1f}x", point.replace("%", " %")]
        name = layer.replace("->", "→")
        best = _best(over_best, layer, batch)
        rows.append([f"{name}, N={batch}", *_cells(ratios), *last, *best])
    for (model, batch), ratios in _ratios(kept["training"], "model").items():
        best = _best(over_best, model, batch)
        rows.append([f"whole {model} training step, N={batch}", *_cells(ratios), "", "", *best])
    return markdown([*HEADER, *([OVER_BEST] if over_best else [])], rows)


def _ratios(
    records: list[dict], key: str, over: str = "speed-up"
) -> dict[tuple[str, int], dict[float, float]]:
    """(name, batch) -> sparsity -> ratio, of whole modules or models."""
    found: dict[tuple[str, int], dict[float, float]] = {}
    for r in records:
        if r.get("operation", "module") == "module" and over in r:
            found.setdefault((r[key], r["batch"]), {})[r["sparsity"]] = r[over]
    return found


def _best(over_best: dict, name: str, batch: int) -> list[str]:
    """The cell of OVER_BEST, or none where the JSON has no such column. Italics: dense wins."""
    if not over_best:
        return []
    ratio = over_best.get((name, batch), {}).get(AT)
    if ratio is None:
        return ["not measured"]
    return [f"{ratio:.1f}x" if ratio >= 1 else f"*{ratio:.2f}x*"]


def _cells(ratios: dict[float, float]) -> list[str]:
    return [f"{ratios[s]:.1f}x" if s in ratios else "" for s in SPARSITIES]


def main(kept: Path, avx2: Path, page: Path) -> None:
    read = (json.loads(path.read_text(encoding="utf-8")) for path in (kept, avx2))
    renew(page, BEGIN, END, table(*read))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
