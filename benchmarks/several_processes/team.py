"""A team of gloo's processes, which measures and returns the records of its first one."""

from __future__ import annotations

import datetime
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing
from whole_models.variants import Case

from .sides import AFTER_REWIRE, AT, Side, rounds_of, slowest

PATIENCE = datetime.timedelta(seconds=120)


def measure(size: int, case: Case, rounds: int) -> dict[str, Any]:
    """{"steps": a record for each side, "rewires": [a record]} of `size` processes."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_work, (size, case, rounds, folder), nprocs=size)
        return json.loads(Path(folder, "found").read_text(encoding="utf-8"))


def _work(rank: int, size: int, case: Case, rounds: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", meeting, rank=rank, world_size=size, timeout=PATIENCE)
    sides = [Side(name, case, rank) for name in ("dense", "ours")]
    steps = [_sent_record(side) for side in sides]
    runs = {
        (side.name, name): run
        for side, record in zip(sides, steps, strict=True)
        for name, run in side.runs(record["sent"]["fp32"]["buckets"]).items()
    }
    alternating = {key: runs[key] for key in sorted(runs, key=lambda key: key[1])}
    taken = rounds_of(alternating, rounds)
    for record in steps:
        own = {name: times for (side, name), times in taken.items() if side == record["side"]}
        record["ms"] = {name: _times(own[name]) for name in own}
        record["rounds"] = rounds
    rewires = sides[1].after_rewires()
    parts = zip(*slowest([rewires() for _ in range(rounds + 1)])[1:], strict=True)
    ms = dict(zip(AFTER_REWIRE, map(_times, parts), strict=True))
    facts = {"model": case.name, "batch": case.batch, "sparsity": AT, "processes": size}
    if rank == 0:
        found = {
            "steps": [facts | record for record in steps],
            "rewires": [facts | {"ms": ms, "rounds": rounds}],
        }
        Path(folder, "found").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def _sent_record(side: Side) -> dict[str, Any]:
    """What a step and process of this side hands over to be averaged, with and without the hook."""
    sent = {}
    for name, bf16 in (("fp32", False), ("bf16 hook", True)):
        watch, on_lo = side.watched(bf16)
        expected = (2 if bf16 else 4) * side.numbers
        if sum(watch.bytes) != expected:
            raise RuntimeError(
                f"{side.name}, {name}: a step sent {sum(watch.bytes)} bytes, expected {expected}"
            )
        sent[name] = {
            "bytes": sum(watch.bytes),
            "buckets": watch.bytes,
            "bytes on lo": on_lo and round(on_lo),
            "share within backward": round(watch.share_within_backward(), 4),
            "share averaged within backward": round(watch.share_averaged_within_backward(), 4),
        }
    return {"side": side.name, "numbers": side.numbers, "sent": sent}


def _times(taken: Any) -> dict[str, float]:
    return {"min": round(min(taken), 3), "median": round(median(taken), 3)}
