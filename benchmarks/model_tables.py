"""What whole models measured, as docs/performance.md shows it, from JSONs of measure_models.py.

python benchmarks/model_tables.py [KEPT.json ...] docs/performance.md

writes tables between two marks of the page: the targets, then every model beside its rivals, in
time and in memory.
Numbers in italics are of cases in which dense is faster, or takes less memory. Without a JSON the
tables say that nothing was measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pages import renew

from dsr_kernels.bench.rivals import PRECISIONS, fastest, ratio, words
from dsr_kernels.text_table import markdown

BEGIN = "<!-- whole models: made by `make model-tables` -->"
END = "<!-- end of whole models -->"
AT = 0.9
NOT_MEASURED, NO_AMX = "not measured", "not measured: no AMX here"
AMX = "AMX"


class Target(NamedTuple):
    """A row of the first table. `measured` finds its number in a kept JSON."""

    words: str
    target: float
    measured: Callable[[dict], float | None]
    show: Callable[[float], str]
    loses: Callable[[float], bool] = lambda number: number < 1
    least: bool = True  # whether the target is a lower bound

    def bound(self) -> str:
        return ("" if self.least else "at most ") + self.show(self.target)

    def cell(self, number: float | None) -> str:
        if number is None:
            return NOT_MEASURED
        return f"*{self.show(number)}*" if self.loses(number) else self.show(number)


def times(number: float) -> str:
    return f"{number:.2f}x" if number < 1 else f"{number:.1f}x"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def record_of(kept: dict, section: str, model: str, batch: int | None = None) -> dict | None:
    """The record of a model at AT; of some batch, or of the only one."""
    found = [r for r in kept[section] if (r["model"], r["sparsity"]) == (model, AT)]
    return next((r for r in found if batch in (None, r["batch"])), None)


def speed_up(section: str, model: str, precision: str, batch: int | None = None) -> Callable:
    """Finds ours over the best dense of the same precision."""

    def measured(kept: dict) -> float | None:
        record = record_of(kept, section, model, batch)
        return record and record["speed-up by precision"].get(precision)

    return measured


def peak(precision: str) -> Callable:
    """Finds the peak of a training process over dense's, under the default allocator."""

    def measured(kept: dict) -> float | None:
        record = record_of(kept, "memory", "WRN-28-2")
        return record and record["of dense"].get(precision)

    return measured


def outside(precision: str) -> Callable:
    """Finds the share of our step that is spent outside convolutions."""

    def measured(kept: dict) -> float | None:
        record = record_of(kept, "training", "WRN-28-2")
        key = "ours" if precision == "fp32" else f"ours {precision}"
        return record and record["share outside convolutions"].get(key)

    return measured


STEP, MEMORY = "WRN-28-2 step", "peak memory of a training process, of dense's"
SHARE = "the step's share outside convolutions"


def tiny(kept: dict) -> float | None:
    """A tiny layer's forward and backward over nn.Conv2d's."""
    return next((r["over dense"] for r in kept["other"] if r.get("what") == "tiny layer"), None)


BF16 = Target(
    f"{STEP}, ours bf16 over the best dense bf16, on AMX",
    2.0,
    speed_up("training", "WRN-28-2", "bf16"),
    times,
)
TARGETS = (
    BF16,
    Target(
        f"{STEP}, ours fp32 over the best dense fp32",
        4.5,
        speed_up("training", "WRN-28-2", "fp32"),
        times,
    ),
    Target(
        "ResNet-50 step, ours fp32 over the best dense fp32",
        2.5,
        speed_up("training", "ResNet-50", "fp32"),
        times,
    ),
    *(
        Target(
            f"WRN-28-2 inference, batch {batch}, ours fp32 over the best dense fp32, folded",
            2.5,
            speed_up("inference", "WRN-28-2", "fp32", batch),
            times,
        )
        for batch in (1, 64)
    ),
    *(
        Target(f"{MEMORY}, {p}", 0.6, peak(p), percent, lambda share: share > 1, False)
        for p in PRECISIONS
    ),
    *(
        Target(f"{SHARE}, {p}", 0.2, outside(p), percent, lambda _: False, False)
        for p in PRECISIONS
    ),
    Target(
        "forward and backward of a tiny layer, nn.Conv2d's times",
        1.5,
        tiny,
        times,
        lambda ratio: ratio > 1,
        False,
    ),
)


def target_table(every: Sequence[dict]) -> str:
    """Markdown: a row for each target and machine. bf16 without AMX has rows of its own."""
    rows = []
    for target in TARGETS:
        if not every:
            rows.append([target.words, target.bound(), NOT_MEASURED, ""])
        for kept in every:
            rows += _rows(target, kept)
    return markdown(["", "target", "measured", "machine"], rows)


def _rows(target: Target, kept: dict) -> Iterator[list[str]]:
    by, number = kept["machine"]["dense bf16 by"], target.measured(kept)
    if target is not BF16 or by == AMX:
        yield [target.words, target.bound(), target.cell(number), machine_words(kept)]
        return
    yield [target.words, target.bound(), NO_AMX, machine_words(kept)]
    if number is not None:
        how = "widened to fp32" if by == "fp32" else f"by {by}"
        name = f"{STEP}, ours bf16 over the best dense bf16, {how}"
        yield [name, "", target.cell(number), machine_words(kept)]


def machine_words(kept: dict) -> str:
    machine = kept["machine"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    amx = any(name.startswith(AMX) for name in machine["instructions"])
    return f"{machine['cpu']}, {threads}, {'AMX' if amx else 'no AMX'}, torch {machine['torch']}"


def rival_table(every: Sequence[dict]) -> str:
    """Markdown: each model's fastest dense and ours in each precision; ours over the best."""
    rows = []
    for kept in every:
        for section, what in (("training", "step"), ("inference", "inference")):
            rows += [_rival_row(kept, record, what) for record in kept[section]]
    header = ["", "best dense fp32", "ours fp32", "ratio", "best dense bf16", "ours bf16", "ratio"]
    return markdown([*header, "best dense of the machine", "ours over it", "machine"], rows)


def _rival_row(kept: dict, record: dict, what: str) -> list[str]:
    ms = record["ms"]
    cells = [f"{record['model']} {what}, N={record['batch']}, {percent(record['sparsity'])}"]
    for precision in PRECISIONS:
        dense, ours = (fastest(ms, side, precision) for side in ("dense", "ours"))
        cells += [_ms(ms, dense), _ms(ms, ours), _ratio(ratio(ms, dense, ours))]
    amx = " on AMX" if kept["machine"]["dense bf16 by"] == AMX else ""
    best = record["best dense"]
    name = words(best) + (amx if " bf16" in best else "")
    return [*cells, name, _ratio(record["over best dense"]), machine_words(kept)]


def _ms(ms: dict, name: str | None) -> str:
    return NOT_MEASURED if name is None else f"{ms[name]['min']:.4g} ms ({words(name)})"


def _ratio(number: float | None) -> str:
    if number is None:
        return NOT_MEASURED
    return f"*{times(number)}*" if number < 1 else times(number)


def memory_table(every: Sequence[dict]) -> str:
    """Markdown: peaks of whole training processes in MiB, each side's lowest in each precision."""
    rows = []
    for kept in every:
        for record in kept["memory"]:
            cells = [f"{record['model']}, N={record['batch']}, {percent(record['sparsity'])}"]
            for precision in PRECISIONS:
                cells += _peaks(record, precision)
            rows.append([*cells, machine_words(kept)])
    header = ["peak of a training process, MiB", *("dense fp32", "ours fp32", "of dense")]
    return markdown([*header, *("dense bf16", "ours bf16", "of dense"), "machine"], rows)


def _peaks(record: dict, precision: str) -> list[str]:
    """Dense, ours and their ratio. `fastest` is the lowest of what it is given."""
    peaks = {name: {"min": peak} for name, peak in record["process peak bytes"].items()}
    names = [fastest(peaks, side, precision) for side in ("dense", "ours")]
    if None in names:
        return [NOT_MEASURED] * 3
    share = record["of dense"][precision]
    shown = f"*{percent(share)}*" if share > 1 else percent(share)
    return [*(f"{peaks[name]['min'] / 2**20:.0f} ({words(name)})" for name in names), shown]


def left_out(every: Sequence[dict]) -> list[str]:
    """A sentence for each run that could not be timed, with torch's reason."""
    records = [r for kept in every for section in ("training", "inference") for r in kept[section]]
    pairs = [pair for record in records for pair in record["left out"].items()]
    return [f"Left out: {name} ({reason})." for name, reason in dict.fromkeys(pairs)]


def tables(every: Sequence[dict]) -> str:
    parts = [target_table(every)]
    if any(kept["training"] or kept["inference"] for kept in every):
        parts += [rival_table(every), *left_out(every)]
    if any(kept["memory"] for kept in every):
        parts.append(memory_table(every))
    return "\n\n".join(parts)


def main(kept: Sequence[Path], page: Path) -> None:
    every = [json.loads(path.read_text(encoding="utf-8")) for path in kept]
    renew(page, BEGIN, END, tables(every))


if __name__ == "__main__":
    paths = [Path(name) for name in sys.argv[1:]]
    main(paths[:-1], paths[-1])
