"""Measures the peak memory of training, each model in a process of its own.

Run with `make bench`, or for one model: python benchmarks/bench_memory.py ResNet-50 0.9
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench_training_step import CASES, Training

STEPS = 2


def peak_bytes() -> int:
    """The peak of this process. ru_maxrss would start at what the parent held when it forked."""
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def train(name: str, sparsity: float) -> int:
    """By how many bytes `STEPS` training steps raise the peak. Sparsity 0 is the dense twin."""
    make, batch, size, classes, _, _ = CASES[name]
    before = peak_bytes()
    model = make(sparsity) if sparsity else make(sparse=False)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, classes, (batch,))
    training = Training(model, images, labels)
    for _ in range(STEPS):
        training.step()
    return peak_bytes() - before


# glibc's heap keeps what is freed between living blocks, so a peak depends on the order of frees as
# much as on what is needed. Large blocks apart are given back at once.
ALLOCATORS = {"large blocks apart": {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}, "glibc's default": {}}


def in_a_process(name: str, sparsity: float, allocator: str) -> int:
    """`train` in a process whose allocator has other settings than that of the timings."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    roots = [str(Path(__file__).parents[1]), settings.get("PYTHONPATH", "")]
    settings["PYTHONPATH"] = os.pathsep.join(filter(None, roots))
    command = [sys.executable, __file__, name, str(sparsity)]
    settings |= ALLOCATORS[allocator]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("name", CASES)
def test_peak_memory_of_training(benchmark, name: str, allocator: str) -> None:
    peaks = {"dense": in_a_process(name, 0.0, allocator)}
    peaks["ours"] = benchmark.pedantic(in_a_process, (name, 0.9, allocator), rounds=1)
    common = {"model": name, "batch": CASES[name][1], "sparsity": 0.9, "allocator": allocator}
    benchmark.extra_info["records"] = [{**common, "peak bytes": peaks}]
    assert min(peaks.values()) > 0


if __name__ == "__main__":
    print(train(sys.argv[1], float(sys.argv[2])))
