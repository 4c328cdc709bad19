"""What Python takes of a small layer, as docs/performance.md shows it.

python benchmarks/host_table.py KEPT-host.json [...] docs/performance.md

writes it between two marks, from JSONs of measure_host.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pages import renew

from dsr_kernels.text_table import markdown

BEGIN = "<!-- host: made by `make host-table` -->"
END = "<!-- end of host -->"


def table(kept: list[dict]) -> str:
    """Minimum and median µs of ours and of torch.nn's twin, and their ratio."""
    rows = []
    for each in kept:
        facts = each["machine"]
        where = f"{facts['cpu']}, torch {facts['torch']}"
        for record in each["records"]:
            ours, dense = (record["microseconds"][side] for side in ("ours", "dense"))
            bias = "with bias" if record["bias"] else "without"
            numbers = [f"{t['min']:.0f} / {t['median']:.0f}" for t in (ours, dense)]
            ratio = f"{ours['min'] / dense['min']:.1f}x"
            name = f"{record['layer']}, {bias}"
            rows.append([record["backend"], name, record["what"], *numbers, ratio, where])
    header = ["backend", "layer", "what", "ours, µs", "torch.nn's on the CPU, µs", "times", "where"]
    return markdown(header, rows)


if __name__ == "__main__":
    *results, page = map(Path, sys.argv[1:])
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in results]
    renew(page, BEGIN, END, table(kept))
