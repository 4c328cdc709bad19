"""What data parallelism costs on one machine, as docs/distributed.md shows it.

python benchmarks/distributed_table.py KEPT-distributed.json [...] docs/distributed.md

writes it between two marks, from JSONs of bench_distributed.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from pages import renew
from several_processes.sides import AFTER_REWIRE

from dsr_kernels.text_table import markdown

BEGIN = "<!-- measured: made by `make distributed-table` -->"
END = "<!-- end of measured -->"
RUNS = (
    *("without communication", "DDP", "DDP, bf16 hook"),
    *("all-reduce alone", "all-reduce after"),
)
NOTHING = "Nothing has been kept yet: `make bench-distributed` measures it."


def overhead(record: dict) -> float:
    """Milliseconds of DDP's step that are neither computing nor the all-reduce (fastest rounds)."""
    plain, ddp, alone = (record["ms"][run]["min"] for run in (RUNS[0], RUNS[1], RUNS[3]))
    return ddp - plain - alone


def tables(kept: list[dict]) -> str:
    if not kept:
        return NOTHING
    parts = []
    for each in kept:
        facts = each["machine"]
        parts.append(f"On {facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}:")
        parts += [_times(each["steps"]), _bytes(each["steps"]), _rewires(each["rewires"])]
    return "\n\n".join(parts)


def _name(record: dict) -> str:
    return f"{record['processes']}, {record.get('side', 'ours')}"


def _ms(times: dict) -> str:
    return "{min:.1f} / {median:.1f}".format(**times)


def _times(records: list[dict]) -> str:
    rows = []
    dense = {r["processes"]: overhead(r) for r in records if r["side"] == "dense"}
    for record in records:
        own, rival = overhead(record), dense[record["processes"]]
        ratio = ""
        if record["side"] == "ours" and own > 0 and rival > 0:
            ratio = f" ({own / rival:.2f} of dense's)"
        cells = [_ms(record["ms"][run]) for run in RUNS]
        rows.append([_name(record), *cells, f"{own:.1f}{ratio}"])
    return markdown(["processes, ms (min / median)", *RUNS, "overhead"], rows)


def _bytes(records: list[dict]) -> str:
    return markdown(
        [
            *("processes, a step's KB of each", "numbers", "DDP", "DDP, bf16 hook"),
            *("expected on the wire", "on lo", "buckets"),
            *("full before the backward pass ends", "averaged before"),
        ],
        list(_sent(records)),
    )


def _sent(records: list[dict]) -> Iterator[list[str]]:
    for record in records:
        full, low = record["sent"]["fp32"], record["sent"]["bf16 hook"]
        size = record["processes"]
        ring = 2 * (size - 1) / size * full["bytes"]
        lo = full["bytes on lo"]
        yield [
            *(_name(record), f"{record['numbers']:,}"),
            *(f"{sent['bytes'] / 1e3:.0f}" for sent in (full, low)),
            *(f"{ring / 1e3:.0f}", "" if lo is None else f"{lo / 1e3:.0f}"),
            str(len(full["buckets"])),
            f"{100 * full['share within backward']:.0f} %",
            f"{100 * full['share averaged within backward']:.0f} %",
        ]


def _rewires(records: list[dict]) -> str:
    """The last column: what a rewire costs, with the reducer that is made anew."""
    rows = []
    for record in records:
        ms = record["ms"]
        rewire, first, second, third = (ms[part]["min"] for part in AFTER_REWIRE)
        cells = [_ms(ms[part]) for part in AFTER_REWIRE]
        rows.append([_name(record), *cells, f"{rewire + first + second - 2 * third:.1f}"])
    return markdown(["processes, ms (min / median)", *AFTER_REWIRE, "all that it costs"], rows)


if __name__ == "__main__":
    *results, page = map(Path, sys.argv[1:])
    renew(page, BEGIN, END, tables([json.loads(r.read_text(encoding="utf-8")) for r in results]))
