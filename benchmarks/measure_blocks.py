"""Measures weights that are blocks of output channels, beside every dense rival: layers and steps.

    PYTHONPATH=. python benchmarks/measure_blocks.py build/blocks.json [--rounds 15] [-k WRN]

Writes a JSON with a record for each layer, operation, block size and sparsity, and one of training
steps, and prints what blocks_table.py makes of it. `make bench-blocks` sets the allocator as for
the other timings.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import torch
from blocks_table import steps_table, table
from layers import FAMILIES
from summarize import lines_of
from whole_models.blocks import steps_record
from whole_models.variants import WRN

from dsr_kernels.backends.native import _C
from dsr_kernels.backends.processor import processor_facts
from dsr_kernels.bench.problem import OPERATIONS, Layer, Problem
from dsr_kernels.bench.rivals import bf16_here, rival_sentence
from dsr_kernels.bench.timing import compare
from dsr_kernels.environment import machine

SPARSITIES = (0.8, 0.9)
BLOCK_SIZES = (1, 4, 8, 16)
FEWEST_ROUNDS = 15  # that a number in a document may stand on


def measure(family: str, layer: Layer, rounds: int, peak: float) -> list[dict]:
    """Records of all block sizes, which take turns with each other and with dense."""
    problems = [Problem(layer, SPARSITIES, block_size=size) for size in BLOCK_SIZES]
    (first, low), *others = ((p, p.in_bfloat16() if bf16_here() else None) for p in problems)
    found = []
    for operation in OPERATIONS[:3]:
        found += compare(first, operation, rounds, peak, low=low, others=others)
    return [{"family": family, **record} for record in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("json", type=Path, help="where to write what was measured")
    add("-k", default="", metavar="TEXT", help="only families with it, as in 'WRN 3x3'")
    rounds = f"times of each (default: {FEWEST_ROUNDS}); fewer only show that everything works"
    add("--rounds", type=int, default=FEWEST_ROUNDS, help=rounds)
    add("--no-compile", action="store_true", help="leave out what torch.compile makes of dense")
    options = parser.parse_args()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    print(rival_sentence())
    peak = _C.peak_gflops(torch.get_num_threads())
    kept = {
        "machine": {**machine(torch.device("cpu")), **processor_facts(), "peak GF/s": peak},
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "rounds": options.rounds,
        "layers": [],
        "steps": [],
    }
    for family, layers in FAMILIES.items():
        if options.k.lower() not in family.lower():
            continue
        for layer in layers:
            print(layer, flush=True)
            kept["layers"] += measure(family, layer, options.rounds, peak)
            options.json.write_text(lines_of(kept))
    if options.k.lower() in f"{WRN.name} step".lower():
        print(f"{WRN.name} step", flush=True)
        kept["steps"].append(steps_record(WRN, options.rounds, not options.no_compile))
        options.json.write_text(lines_of(kept))
    written = [json.loads(options.json.read_text())]
    print(table(written), steps_table(written), sep="\n\n")


if __name__ == "__main__":
    main()
