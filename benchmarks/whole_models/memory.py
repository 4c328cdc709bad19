"""The peak memory of a training process, each variant in a fresh process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsr_kernels.bench.rivals import PRECISIONS, fastest, short
from whole_models.training import Training
from whole_models.variants import RESNET, WRN, Case, Variant, dense, ours

STEPS = 5
AT = 0.9  # the sparsity
DEFAULT = "glibc's default"
# glibc's heap keeps what is freed between living blocks, so a peak depends on the order of frees as
# much as on what is needed. With large blocks apart, each is given back at once.
ALLOCATORS = {"large blocks apart": {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}, DEFAULT: {}}


def memory_record(case: Case, allocator: str = DEFAULT) -> dict[str, Any]:
    """Peaks of dense and ours, eager, in each precision.

    "process peak bytes" are of whole processes, torch included; "of dense" is their ratio in each
    precision. "peak bytes" are what the model and its steps added, in float32. Where a side has
    several variants of a precision, the lowest counts.
    """
    peaks = {v.name: in_a_process(case, v, allocator) for v in (*dense(compiled=False), *ours())}
    process = {name: peak["process"] for name, peak in peaks.items()}
    growth = {name: peak["growth"] for name, peak in peaks.items()}
    return {
        "model": case.name,
        "batch": case.batch,
        "sparsity": AT,
        "allocator": allocator,
        "steps": STEPS,
        "peak bytes": {side: growth[lowest(growth, side, "fp32")] for side in ("dense", "ours")},
        "process peak bytes": process,
        "of dense": of_dense(process),
    }


def lowest(peaks: Mapping[str, float], side: str, precision: str) -> str | None:
    return fastest({name: {"min": peak} for name, peak in peaks.items()}, side, precision)


def of_dense(peaks: Mapping[str, float]) -> dict[str, float]:
    """precision -> ours over dense."""
    pairs = {p: (lowest(peaks, "ours", p), lowest(peaks, "dense", p)) for p in PRECISIONS}
    return {p: short(peaks[ours] / peaks[dense]) for p, (ours, dense) in pairs.items() if dense}


def in_a_process(case: Case, variant: Variant, allocator: str) -> dict[str, int]:
    """`train` in a process whose allocator has other settings than that of the timings."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    roots = [*map(str, Path(__file__).resolve().parents[1:3]), settings.get("PYTHONPATH", "")]
    settings["PYTHONPATH"] = os.pathsep.join(filter(None, roots))
    asked = {"case": [case.name, case.batch, case.size], "variant": variant._asdict()}
    command = [sys.executable, "-m", "whole_models.memory", json.dumps(asked)]
    settings |= ALLOCATORS[allocator]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # fuse() may have its say before


def train(case: Case, variant: Variant) -> dict[str, int]:
    """The peak after `STEPS` steps, and by how much model and steps raised it."""
    before = peak_bytes()
    model = variant.model(case, AT)
    images = case.images().to(**variant.format)
    training = Training(model, images, case.labels(), variant.autocast)
    for _ in range(STEPS):
        training.step()
    return {"process": peak_bytes(), "growth": peak_bytes() - before}


def peak_bytes() -> int:
    """The peak of this process. ru_maxrss would start at what the parent held when it forked."""
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def main(asked: dict[str, Any]) -> None:
    name, batch, size = asked["case"]
    (case,) = (each for each in (WRN, RESNET) if each.name == name)
    case = case._replace(batch=batch, size=size)
    print(json.dumps(train(case, Variant(**asked["variant"]))))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
