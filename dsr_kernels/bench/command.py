"""`dsr bench`: one layer's operations, sparse against dense, as a table and as JSON."""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import sys

import torch

from dsr_kernels import text_table
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.processor import processor_facts
from dsr_kernels.bench.problem import OPERATIONS, Layer, Problem
from dsr_kernels.bench.rivals import bf16_here, fastest, rival_sentence, words
from dsr_kernels.bench.timing import compare
from dsr_kernels.environment import check_processor
from dsr_kernels.errors import UsageError
from dsr_kernels.topology import check_block_size

SPEC = re.compile(r"(\d+)x(\d+)(?:x(\d+)x(\d+)@(\d+)(?:x(\d+))?)?")


def run(options: argparse.Namespace) -> int:
    """Measures a layer and prints a table. Raises UsageError, which names the option at fault."""
    layer = parse_layer(options.layer, options.stride, options.padding, options.batch)
    _at_least(1, rounds=options.rounds)
    if not 0 <= options.sparsity < 1:
        raise UsageError(f"--sparsity: expected 0 <= sparsity < 1, got {options.sparsity:g}")
    try:
        check_block_size(layer.weight_shape, options.block_size)
    except ValueError as error:
        raise UsageError(f"--block-size: {str(error).partition(': ')[2]}") from None
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise UsageError(f"--json: the folder of {options.json} does not exist")
    check_processor()
    if options.threads is not None:
        _at_least(1, threads=options.threads)
        torch.set_num_threads(options.threads)
    _keep_freed_memory()
    peak = _C.peak_gflops(torch.get_num_threads())
    problem = Problem(layer, [options.sparsity], block_size=options.block_size)
    low = problem.in_bfloat16() if bf16_here() else None
    records = [r for op in OPERATIONS for r in compare(problem, op, options.rounds, peak, low=low)]
    print(table(records, peak))
    if options.json is not None:
        kept = {
            "machine": processor_facts(),
            "peak GF/s": round(peak, 1),
            "rounds": options.rounds,
            "records": records,
        }
        options.json.write_text(json.dumps(kept, indent=1) + "\n")
    return 0


def parse_layer(spec: str, stride: int, padding: int | None, batch: int) -> Layer:
    """The layer of "64x64x3x3@16", "64x32x1x7@8x32" or, linear, "1024x512"."""
    found = SPEC.fullmatch(spec)
    if found is None:
        raise UsageError(
            "--layer: expected OxCxKHxKW@H or OxCxKHxKW@HxW, such as 64x64x3x3@16, or OxC for a "
            f"linear layer, got {spec!r}"
        )
    out, channels, kh, kw, height, width = (None if g is None else int(g) for g in found.groups())
    kernel = (kh, kw) if kh is not None else (1, 1)
    size = (height, width if width is not None else height) if height is not None else (1, 1)
    if min(out, channels, *kernel, *size) < 1:
        raise UsageError(f"--layer: expected sizes of at least 1, got {spec!r}")
    _at_least(1, stride=stride, batch=batch)
    if padding is not None:
        _at_least(0, padding=padding)
    sides = (kernel[0] // 2, kernel[1] // 2) if padding is None else (padding, padding)
    layer = Layer(out, channels, kernel, size, stride, sides, batch)
    if min(layer.out_size) < 1:
        raise UsageError(
            f"--layer: a {kernel[0]}x{kernel[1]} kernel does not fit a {size[0]}x{size[1]} input "
            f"with padding {sides[0]}x{sides[1]}"
        )
    return layer


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory, so that neither side pays for page faults on every output.

    `make bench` does the same through the environment. Other C libraries stay as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_mmap_max, 0)


def _at_least(least: int, **options: int) -> None:
    for name, value in options.items():
        if value < least:
            raise UsageError(f"--{name}: expected at least {least}, got {value}")


def table(records: list[dict], peak: float) -> str:
    """Two rows for each operation: in float32 and, where it was measured, in bfloat16.

    A row has the fastest rounds in ms and their ratio, in one precision on both sides. The last
    column sets ours of that row against the best dense of either precision. GF/s and the variant
    are of ours in float32.
    """
    first = records[0]
    measured = (
        f"{first['layer']}, batch {first['batch']}, {first['nnz']:,} non-zeros "
        f"({100 * first['sparsity']:g} % zeros{_of_blocks(first)}), {first['isa']}, "
        f"{first['threads']} threads, "
        f"peak {peak:.0f} GF/s"
    )
    rows = [("", "dense", "dense ms", "ours ms", "ratio", "over best dense", "GF/s", "variant")]
    for each in records:
        for precision in each["speed-up by precision"]:
            rows.append(_row(each, precision))
    lines = [measured, *text_table.columns(rows, left=(0, 1, 7))]
    best: dict[str, list[str]] = {}
    for each in records:
        best.setdefault(words(each["best dense"]), []).append(each["operation"])
    named = "; ".join(f"{name} ({', '.join(operations)})" for name, operations in best.items())
    return "\n".join([*lines, f"best dense of this machine: {named}", rival_sentence()])


def _of_blocks(record: dict) -> str:
    size = record.get("block_size", 1)
    return f", blocks of {size} output channels" if size > 1 else ""


def _row(record: dict, precision: str) -> tuple[str, ...]:
    taken = record["ms"]
    dense, ours = (fastest(taken, side, precision) for side in ("dense", "ours"))
    over = taken[record["best dense"]]["min"] / taken[ours]["min"]
    plain = precision == "fp32"
    return (
        record["operation"] if plain else "",
        words(dense),
        f"{taken[dense]['min']:.3f}",
        f"{taken[ours]['min']:.3f}",
        f"{record['speed-up by precision'][precision]:.2f}x",
        f"{over:.2f}x",
        f"{record['GF/s']:.1f}" if plain else "",
        record["variant"] if plain else "",
    )
