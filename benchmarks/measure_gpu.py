"""Measures a GPU, sparse against dense: layers, training steps, memory and rewires.

    PYTHONPATH=. python benchmarks/measure_gpu.py build/bench-gpu.json [--quick] [-k "3x3 @32"]

Writes a JSON in the form of the CPU's kept ones after every part, and prints tables of it. What
the budget of seconds has no time for is left out and named. Exit code 1 where a result is wrong.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import platform
import sys
import time
from pathlib import Path

import torch
from layers import FAMILIES, SPARSITIES
from on_gpu import layers as layer_records
from on_gpu import steps, yardsticks
from on_gpu.tables import tables
from on_gpu.timing import Clock
from summarize import lines_of

from dsr_kernels.bench.problem import OPERATIONS, Layer

QUICK_SPARSITIES = (0.9, 0.98)
LAYERS_SHARE = 0.6  # of the budget, after which the training steps have their turn


class Run:
    """The measurements, the most important first, until the budget is spent."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.start = options, time.monotonic()
        self.scale = 1 if options.device == "cuda" else 8
        device = torch.device(options.device)
        self.clock = Clock(device, options.rounds)
        torch.backends.cudnn.benchmark = True
        self.kept: dict = {
            "machine": {
                "python": platform.python_version(),
                "system": platform.system(),
                **yardsticks.measure(self.clock),
            },
            "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            **{name: [] for name in ("layers", "training", "memory", "other", "left out")},
        }

    def out_of_time(self, what: str, share: float = 1.0) -> bool:
        """Whether this share of the budget is spent. If so, notes that `what` is left out."""
        spent = time.monotonic() - self.start > share * self.options.seconds
        if spent:
            self.kept["left out"].append(what)
        return spent

    def wanted(self, what: str) -> bool:
        return self.options.k.lower() in what.lower()

    def save(self) -> None:
        self.options.json.parent.mkdir(parents=True, exist_ok=True)
        self.options.json.write_text(lines_of(self.kept))

    def layers(self) -> None:
        sparsities = QUICK_SPARSITIES if self.options.quick else SPARSITIES
        for family, layer in cases(self.options.quick):
            if self.clock.device.type == "cpu":
                layer = _small(layer)
            wanted = [o for o in OPERATIONS[:3] if self.wanted(f"{family} {layer} {o}")]
            if not wanted or self.out_of_time(str(layer), LAYERS_SHARE):
                continue
            found = layer_records.records(
                layer, wanted, sparsities, self.clock, self.kept["machine"]
            )
            self.kept["layers"] += [{"family": family, **record} for record in found]
            self.save()

    def training(self) -> None:
        for model in steps.MODELS:
            for kind, *how in steps.variants(model):
                name = f"training step {model} {kind}"
                if self.options.quick and model != "WRN-28-2":
                    continue
                if not self.wanted(name) or self.out_of_time(name):
                    continue
                result = steps.record(model, kind, *how, self.clock, self.scale)
                self.kept["training"].append(result)
                self.save()

    def rewires(self) -> None:
        if self.wanted("rewire") and not self.out_of_time("rewires"):
            self.kept["other"] += steps.rewires(self.clock, self.scale)
            self.save()


def cases(quick: bool) -> list[tuple[str, Layer]]:
    """All families' first layers, then their second ones, ...: a budget cuts all alike."""
    columns = itertools.zip_longest(*([(f, x) for x in xs] for f, xs in FAMILIES.items()))
    ordered = [[case for case in column if case is not None] for column in columns]
    return ordered[0] if quick else list(itertools.chain(*ordered))


def _small(layer: Layer) -> Layer:
    """The same layer with two images, for the CPU."""
    fields = {name: getattr(layer, name) for name in layer.__dataclass_fields__}
    return Layer(**{**fields, "batch": 2})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("json", type=Path, help="where to write what was measured")
    parser.add_argument("--quick", action="store_true", help="a layer of each family, WRN-28-2")
    parser.add_argument("-k", default="", metavar="TEXT", help="only what has it in its name")
    parser.add_argument("--rounds", type=int, default=21, help="times of each (default: 21)")
    parser.add_argument("--seconds", type=float, default=140, help="the budget (default: 140)")
    device = "cpu: small sizes, to try the benchmark itself"
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help=device)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"no CUDA device that torch {torch.__version__} can use")
    run = Run(options)
    run.rewires()
    run.layers()
    run.training()
    run.save()
    print(tables(json.loads(options.json.read_text())))
    print(f"\n{time.monotonic() - run.start:.0f} s; {options.json}")
    wrong = [record for record in run.kept["layers"] if layer_records.is_wrong(record)]
    for record in wrong:
        fields = ("layer", "operation", "dtype", "sparsity", "max error")
        print("WRONG: " + ", ".join(str(record[name]) for name in fields))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
