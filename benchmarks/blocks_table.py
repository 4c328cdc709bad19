"""What blocks of output channels are worth, as docs/performance.md shows it.

python benchmarks/blocks_table.py KEPT-blocks.json [...] docs/performance.md

writes it between two marks, from JSONs of measure_blocks.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pages import renew
from targets import speed_up
from whole_models.blocks import fastest_thin

from dsr_kernels.bench.rivals import PRECISIONS, fastest
from dsr_kernels.text_table import markdown

BEGIN = "<!-- blocks: made by `make blocks-table` -->"
END = "<!-- end of blocks -->"
SPARSITIES = (0.8, 0.9)


def table(kept: list[dict]) -> str:
    """Geometric means over a family's layers and their three passes, a row for each block size."""
    rows = []
    for each in kept:
        facts, layers = each["machine"], each["layers"]
        where = _where(facts)
        for family in dict.fromkeys(record["family"] for record in layers):
            for size in dict.fromkeys(record["block_size"] for record in layers):
                ratios = [
                    speed_up(layers, s, over, family=family, block_size=size)
                    for s in SPARSITIES
                    for over in ("speed-up", "over best dense")
                ]
                rows.append([family, str(size), *map(_cell, ratios), where])
    header = [f"{over}, {s:.0%}" for s in SPARSITIES for over in ("fp32", "best dense")]
    return markdown(["times as fast as dense", "block size", *header, "machine"], rows)


def _where(facts: dict) -> str:
    return f"{facts['cpu']}, {facts['threads']} threads, dense bf16 by {facts['dense bf16 by']}"


def steps_table(kept: list[dict]) -> str:
    """A fused training step by precision: the best dense and thin dense one, and ours."""
    rows = []
    for each in kept:
        where = _where(each["machine"])
        for record in each.get("steps", []):
            for precision in PRECISIONS:
                rows += _step_rows(record, precision, where)
    header = ["step, ms (min / median)", "best dense", "thin dense", "unstructured", "blocks of 16"]
    return markdown([*header, "over the best dense", "machine"], rows)


def _step_rows(record: dict, precision: str, where: str) -> list[list[str]]:
    taken = record["milliseconds"]
    dense, ours = (fastest(taken, side, precision) for side in ("dense", "ours"))
    if dense is None or ours is None:
        return []
    blocks = taken[f"{ours}, blocks of 16"]
    thin = taken.get(fastest_thin(taken, precision))
    ms = [
        "{min:.0f} / {median:.0f}".format(**t) if t else ""
        for t in (taken[dense], thin, taken[ours], blocks)
    ]
    over = [_cell(taken[dense]["min"] / t["min"]) for t in (taken[ours], blocks)]
    name = f"{record['model']} at {record['sparsity']:.0%}, batch {record['batch']}, {precision}"
    return [[name, *ms, " and ".join(over), where]]


def _cell(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"*{ratio:.2f}*" if ratio < 1 else f"{ratio:.2f}"


if __name__ == "__main__":
    *results, page = map(Path, sys.argv[1:])
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in results]
    renew(page, BEGIN, END, f"{table(kept)}\n\n{steps_table(kept)}")
