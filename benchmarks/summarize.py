"""Reduces a pytest-benchmark JSON to what is worth keeping, and prints it as Markdown tables.

python benchmarks/summarize.py FULL.json KEPT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def numbers(benchmark: dict) -> dict:
    """What a comparison recorded itself, or else the plain times."""
    recorded, stats = benchmark["extra_info"], benchmark["stats"]
    if "speed-up" in recorded:
        return recorded
    times = {"ms": round(1e3 * stats["min"], 3), "ms median": round(1e3 * stats["median"], 3)}
    return times | recorded


def reduce(full: dict) -> dict:
    machine = full["machine_info"]
    return {
        "machine": {
            "cpu": machine["cpu"].get("brand_raw", machine["processor"]),
            "cores": machine["cpu"].get("count"),
            "python": machine["python_version"],
            "system": machine["system"],
        },
        "datetime": full["datetime"],
        "results": [
            {"name": b["name"], "params": b["params"], **numbers(b)} for b in full["benchmarks"]
        ],
    }


def speed_table(results: list[dict]) -> str:
    """Markdown: a row per layer, a column per sparsity, times as fast as dense."""
    rows: dict[str, dict[float, float]] = {}
    for result in results:
        if "speed-up" in result:
            params = result["params"]
            name = params.get("layer", result["name"].split("[")[0].removeprefix("test_"))
            rows.setdefault(name, {})[params["sparsity"]] = result["speed-up"]
    columns = sorted({sparsity for row in rows.values() for sparsity in row})
    lines = ["| times as fast as dense | " + " | ".join(f"{100 * s:g} %" for s in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, row in rows.items():
        cells = [f"{row[s]:.1f}x" if s in row else "" for s in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    kept = reduce(json.loads(source.read_text()))
    target.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"{kept['machine']['cpu']}, {kept['machine']['cores']} cores, {kept['datetime']}")
    for result in kept["results"]:
        shown = [f"{k}: {v}" for k, v in result.items() if k not in ("name", "params")]
        print(f"| {result['name']} | " + " | ".join(shown) + " |")
    print("\n" + speed_table(kept["results"]))


if __name__ == "__main__":
    main()
