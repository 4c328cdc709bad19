"""Measures data parallelism of 1, 2 and 4 gloo processes on this machine, sparse beside dense DDP.

    PYTHONPATH=. python benchmarks/bench_distributed.py build/distributed.json [--rounds 15]

Each process has one thread and its own batch of a WRN-28-2. For each side, in turns: a step
without communication, DDP's, DDP's with bf16_compress_hook, the all-reduce of a step's buckets
alone, and a step that sends nothing before its backward pass is over. A hook counts the bytes that
a step hands over; the ring sends 2 (p - 1) / p of them. Overhead is what DDP does besides:

    overhead = DDP's step - the step without communication - the all-reduce alone

Overlap makes it less, below 0 too. The target is at most 1.15 times dense's. Where there are more
processes than cores they wait for each other, and overhead is mostly that.

Writes a JSON in the form of the other kept ones, and prints what distributed_table.py makes of it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from pathlib import Path

import torch
from distributed_table import tables
from several_processes.team import measure
from summarize import lines_of
from whole_models.variants import WRN

from dsr_kernels.backends.processor import processor_facts
from dsr_kernels.environment import machine

SIZES = (1, 2, 4)
BATCH = 16  # of each process: a step stays well below a second and a half
FEWEST_ROUNDS = 15  # that a number in a document may stand on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("json", type=Path, help="where to write what was measured")
    rounds = f"times of each (default: {FEWEST_ROUNDS}); fewer only show that everything works"
    add("--rounds", type=int, default=FEWEST_ROUNDS, help=rounds)
    add("--processes", type=int, nargs="+", default=SIZES, help="numbers of them (default: 1 2 4)")
    add("--small", action="store_true", help="small batches and images, to try the benchmark")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {options.rounds}")
    if min(options.processes) < 1:
        parser.error(f"--processes: expected at least 1, got {min(options.processes)}")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
    torch.set_num_threads(1)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    case = WRN._replace(batch=2, size=8) if options.small else WRN._replace(batch=BATCH)
    kept = {
        "machine": {**machine(torch.device("cpu")), **processor_facts()},
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "steps": [],
        "rewires": [],
    }
    for size in options.processes:
        print(f"{case.name}, {size} processes", flush=True)
        for section, records in measure(size, case, options.rounds).items():
            kept[section] += records
        options.json.write_text(lines_of(kept), encoding="utf-8")
    print(tables([json.loads(options.json.read_text(encoding="utf-8"))]))


if __name__ == "__main__":
    main()
