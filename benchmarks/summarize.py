"""Reduces a pytest-benchmark JSON to what is worth keeping, and prints tables of it.

    python benchmarks/summarize.py FULL.json KEPT.json

The kept file: "machine", "datetime", and lists of records: "layers"
(dsr_kernels.bench.timing.record, with a family), "training", "inference", "memory" (see the
bench_ files) and "other" (plain times).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from targets import target_table

from dsr_kernels.bench.rivals import fastest, ratio, words
from dsr_kernels.text_table import markdown

SECTIONS = {
    "test_layer": "layers",
    "test_break_even": "layers",
    "test_training_step": "training",
    "test_inference": "inference",
    "test_peak_memory_of_training": "memory",
}


COLUMNS = (
    *("dense fp32 ms", "ours fp32 ms", "ratio"),
    *("best dense ms", "best of ours ms", "ratio", "best dense"),
)


def reduce(full: dict) -> dict:
    """The kept form of pytest-benchmark's `full` report."""
    info = full["machine_info"]
    kept: dict = {
        "machine": {
            "cpu": info["cpu"].get("brand_raw", info["processor"]),
            "cores": info["cpu"].get("count"),
            "python": info["python_version"],
            "system": info["system"],
            **info.get("yardsticks", {}),
        },
        "datetime": full["datetime"],
        **{section: [] for section in ("layers", "training", "inference", "memory", "other")},
    }
    for each in full["benchmarks"]:
        section = SECTIONS.get(each["name"].split("[")[0])
        rounds, stats = each["stats"]["rounds"], each["stats"]
        if section:
            records = each["extra_info"]["records"]
            kept[section] += [{**record, "rounds": rounds} for record in records]
        else:
            times = {"min": round(1e3 * stats["min"], 3), "median": round(1e3 * stats["median"], 3)}
            extra = each["extra_info"]
            kept["other"].append({"name": each["name"], "ms": times, "rounds": rounds, **extra})
    return kept


def lines_of(kept: dict) -> str:
    """JSON with a line for each record, so that `diff` can compare two runs."""
    parts = []
    for name, value in kept.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(record) for record in value) + "\n]"
        parts.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def speed_table(layers: list[dict]) -> str:
    """Markdown: a row for each layer and operation, with its speed-up at each sparsity.

    Speed-ups are in fp32 on both sides. The last columns name the best dense of the machine, and
    set our fastest run against it at each sparsity.
    """
    rows: dict[tuple[str, str], dict[float, dict]] = {}
    for record in layers:
        row = rows.setdefault((record["layer"], record["operation"]), {})
        row[record["sparsity"]] = record
    columns = sorted({sparsity for row in rows.values() for sparsity in row})
    header = ["times as fast as dense", "operation", *(f"{100 * s:g} %" for s in columns)]
    lines = []
    for (layer, operation), row in rows.items():
        ratios = [f"{row[s]['speed-up']:.2f}x" if s in row else "" for s in columns]
        best = dict.fromkeys(words(fastest(r["ms"], "dense")) for r in row.values())
        lines.append([layer, operation, *ratios, ", ".join(best), _over_best(row)])
    return markdown([*header, "best dense", "over the best dense"], lines)


def _over_best(row: dict[float, dict]) -> str:
    taken = [row[sparsity]["ms"] for sparsity in sorted(row)]
    pairs = [(ms, fastest(ms, "dense"), fastest(ms, "ours")) for ms in taken]
    return " / ".join(f"{ratio(*pair):.2f}" for pair in pairs)


def model_table(kept: dict) -> str:
    """Markdown: training steps and inference of whole models, and the plain times."""
    models = []
    for what in ("training", "inference"):
        for each in kept[what]:
            name = f"{each['model']} {what}, batch {each['batch']}"
            models.append([name, f"{100 * each['sparsity']:g} %", *_against_dense(each["ms"])])
    times = [(each["name"], each["ms"]["min"], each["ms"]["median"]) for each in kept["other"]]
    tables = (
        markdown(["", "sparsity", *COLUMNS], models),
        markdown(["", "ms", "ms, median"], [list(map(str, row)) for row in times]),
    )
    return "\n\n".join(tables)


def _against_dense(ms: dict) -> list[str]:
    """The cells of COLUMNS: both sides in fp32, then the fastest of each side."""
    cells = []
    for precision in ("fp32", None):
        dense, ours = (fastest(ms, side, precision) for side in ("dense", "ours"))
        cells += [f"{ms[dense]['min']:.1f}", f"{ms[ours]['min']:.1f}"]
        cells.append(f"{ratio(ms, dense, ours):.2f}x")
    return [*cells, words(dense)]


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    kept = reduce(json.loads(source.read_text()))
    target.write_text(lines_of(kept))
    print(", ".join(f"{name}: {value}" for name, value in kept["machine"].items()))
    for table in (speed_table(kept["layers"]), model_table(kept), target_table(kept)):
        print("\n" + table)


if __name__ == "__main__":
    main()
