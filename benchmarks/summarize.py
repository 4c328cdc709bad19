"""Reduces a pytest-benchmark JSON to what is worth keeping, and prints it as a Markdown table.

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


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    kept = reduce(json.loads(source.read_text()))
    target.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"{kept['machine']['cpu']}, {kept['machine']['cores']} cores, {kept['datetime']}")
    for result in kept["results"]:
        shown = [f"{k}: {v}" for k, v in result.items() if k not in ("name", "params")]
        print(f"| {result['name']} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
