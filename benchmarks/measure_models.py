"""Measures whole models, ours beside every dense rival: steps, inference, memory of processes.

    PYTHONPATH=. python benchmarks/measure_models.py build/models.json [--rounds 9] [-k WRN]

Writes a JSON in the form of the other kept ones after every part, the most important part first,
and prints what model_tables.py makes of it. `make bench-models` sets the allocator as for the other
timings; the processes whose memory is measured always have the default one.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from model_tables import tables
from summarize import lines_of
from whole_models.comparison import inference_record, training_records
from whole_models.memory import memory_record
from whole_models.overhead import overhead_record
from whole_models.variants import RESNET, WRN, Case

from dsr_kernels.backends.processor import processor_facts
from dsr_kernels.bench.rivals import rival_sentence
from dsr_kernels.environment import machine

SECTIONS = ("layers", "training", "inference", "memory", "other")
FEWEST_ROUNDS = 9  # that a number in a document may stand on
SMALL = 8  # --small divides batches and images by this
TINY = WRN._replace(name="tiny layer", batch=1)


def parts(small: bool) -> Iterator[tuple[str, Case]]:
    """(section, case), the most important first."""
    scale = SMALL if small else 1
    wrn, resnet = (
        case._replace(batch=case.batch // scale, size=case.size // scale) for case in (WRN, RESNET)
    )
    yield "training", wrn
    yield "other", TINY
    yield "inference", wrn._replace(batch=1)
    yield "inference", wrn._replace(batch=64 // scale)
    yield "memory", wrn
    yield "training", resnet
    yield "memory", resnet


def measure(section: str, case: Case, options: argparse.Namespace) -> list[dict]:
    rounds, compiled = options.rounds, not options.no_compile
    if section == "training":
        return training_records(case, rounds, compiled=compiled)
    if section == "inference":
        return [inference_record(case, rounds, compiled=compiled)]
    if section == "other":
        return [overhead_record(rounds)]
    return [memory_record(case)]


def new_record() -> dict:
    """A kept JSON without records: the machine and the day."""
    return {
        "machine": {**machine(torch.device("cpu")), **processor_facts()},
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        **{section: [] for section in SECTIONS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("json", type=Path, help="where to write what was measured")
    add("-k", default="", metavar="TEXT", help="only parts with it, as in 'training ResNet-50'")
    rounds = f"times of each (default: {FEWEST_ROUNDS}); fewer only show that everything works"
    add("--rounds", type=int, default=FEWEST_ROUNDS, help=rounds)
    add("--threads", type=int, help="number of CPU threads (default: torch's choice)")
    add("--no-compile", action="store_true", help="leave out what torch.compile makes of dense")
    add("--small", action="store_true", help="small batches and images, to try the benchmark")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {options.rounds}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    print(rival_sentence())
    kept = new_record()
    for section, case in parts(options.small):
        name = f"{section} {case.name} batch {case.batch}"
        if options.k.lower() not in name.lower():
            continue
        print(name, flush=True)
        kept[section] += measure(section, case, options)
        options.json.write_text(lines_of(kept))
    print(tables([json.loads(options.json.read_text())]))


if __name__ == "__main__":
    main()
