"""The table of README.md, from the kept JSON of a CPU and of a GPU.

python benchmarks/readme_table.py CPU.json GPU.json [MODELS.json] README.md

writes it between two marks. Where dense is faster the number stands in italics. MODELS.json, of
measure_models.py, has the steps in place of CPU.json, and the layers, if it has any (those of `make
bench` on the same machine). CPU.json may be older than dense in bfloat16: then there is no column
for the best dense of the machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from layers import FAMILIES
from on_gpu.measured import step_ratios
from on_gpu.tables import PAIRS, markdown, mean_ratios
from pages import renew
from targets import speed_up

BEGIN, END = "<!-- measured: made by `make readme-table` -->", "<!-- end of measured -->"
AT = 0.9
FIRST = f"{100 * AT:g} % sparse: times as fast as dense"
CPU = {"speed-up": "CPU, fp32 against dense fp32", "over best dense": "CPU, against its best dense"}
OLD_CPU = {"speed-up": "CPU, fp32"}
GPU = ("H200, fp32", "H200, dense in TF32", "H200, both in bf16")
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
    has_rival = any("over best dense" in r for r in (*cpu["layers"], *cpu["training"]))
    columns = CPU if has_rival else OLD_CPU
    rows = []
    for family in FAMILIES:
        ratios = [speed_up(cpu["layers"], AT, over, family=family) for over in columns]
        ratios += [mean_ratios(gpu["layers"], family, d, p)[AT] for d, p, _ in PAIRS]
        rows.append([LAYERS[family], *map(_cell, ratios)])
    for model, words in STEPS.items():
        ratios = [_step(cpu["training"], model, over) for over in columns]
        for _, precision, _ in PAIRS:
            measured = step_ratios(gpu["training"], model, precision, (AT,))
            ratios.append(measured[0] if measured else None)
        rows.append([words, *map(_cell, ratios)])
    return markdown([FIRST, *columns.values(), *GPU], rows)


def _step(training: list[dict], model: str, over: str) -> float | None:
    found = [r for r in training if (r["model"], r["sparsity"]) == (model, AT)]
    return found[0].get(over) if found else None


def _cell(ratio: float | None) -> str:
    if ratio is None:
        return "not measured"
    return f"*{ratio:.2f}*" if ratio < 1 else f"{ratio:.1f}"


def main(kept: Sequence[Path], readme: Path) -> None:
    cpu, gpu, *models = (json.loads(path.read_text(encoding="utf-8")) for path in kept)
    newer = {s: [r for each in models for r in each[s]] or cpu[s] for s in ("layers", "training")}
    renew(readme, BEGIN, END, table({**cpu, **newer}, gpu))


if __name__ == "__main__":
    paths = [Path(name) for name in sys.argv[1:]]
    main(paths[:-1], paths[-1])
