"""The table of README.md, from the kept JSON of a CPU and of a GPU.

python benchmarks/readme_table.py CPU.json GPU.json README.md

writes it between two marks. Where dense is faster the number stands in italics.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gpu.measured import step_ratios
from gpu.pages import renew
from gpu.tables import PAIRS, markdown, mean_ratios
from layers import FAMILIES
from targets import speed_up

BEGIN, END = "<!-- measured: made by `make readme-table` -->", "<!-- end of measured -->"
AT = 0.9
HEADER = (
    f"{100 * AT:g} % sparse: times as fast as dense",
    "CPU, fp32",
    "H200, fp32",
    "H200, dense in TF32",
    "H200, both in bf16",
)
LAYERS = {  # the words for each family
    "WRN 3x3": "WRN-28-2, 3x3 layers",
    "WRN 3x3 stride 2": "WRN-28-2, 3x3 layers of stride 2",
    "ResNet-50 3x3": "ResNet-50, 3x3 layers",
    "ResNet-50 1x1": "ResNet-50, 1x1 layers",
    "linear": "linear layer, 1024→1024",
}
STEPS = {"WRN-28-2": "WRN-28-2, training step", "ResNet-50": "ResNet-50, training step"}


def table(cpu: dict, gpu: dict) -> str:
    """Geometric means over a family's layers and their three passes; ratios of whole steps."""
    rows = []
    for family in FAMILIES:
        ratios = [speed_up(cpu["layers"], AT, family=family)]
        ratios += [mean_ratios(gpu["layers"], family, d, p)[AT] for d, p, _ in PAIRS]
        rows.append([LAYERS[family], *map(_cell, ratios)])
    for model, words in STEPS.items():
        ratios = [
            r["speed-up"] for r in cpu["training"] if (r["model"], r["sparsity"]) == (model, AT)
        ]
        for _, precision, _ in PAIRS:
            measured = step_ratios(gpu["training"], model, precision, (AT,))
            ratios.append(measured[0] if measured else None)
        rows.append([words, *map(_cell, ratios)])
    return markdown(list(HEADER), rows)


def _cell(ratio: float | None) -> str:
    if ratio is None:
        return "not measured"
    return f"*{ratio:.2f}*" if ratio < 1 else f"{ratio:.1f}"


def main(cpu: Path, gpu: Path, readme: Path) -> None:
    read = (json.loads(path.read_text(encoding="utf-8")) for path in (cpu, gpu))
    renew(readme, BEGIN, END, table(*read))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
