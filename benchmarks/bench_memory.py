"""The peak memory of training, each model in a process of its own.

Run with `make bench`, or one of them: python benchmarks/bench_memory.py ResNet-50 0.9
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench_training_step import CASES, Training

STEPS = 3


def peak_bytes() -> int:
    """Of this process. Not ru_maxrss: that one starts at what the parent held when it forked."""
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def train(name: str, sparsity: float) -> int:
    """Bytes by which `STEPS` training steps raise the peak; sparsity 0 is the dense twin."""
    import torch

    make, batch, size, classes, _, _ = CASES[name]
    before = peak_bytes()
    model = make(sparsity) if sparsity else make(sparse=False)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, classes, (batch,))
    training = Training(model, images, labels)
    for _ in range(STEPS):
        training.step()
    return peak_bytes() - before


def in_a_process(name: str, sparsity: float) -> int:
    """`train` with the allocator's own settings, not those that the timings are made with."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    roots = [str(Path(__file__).parents[1]), settings.get("PYTHONPATH", "")]
    settings["PYTHONPATH"] = os.pathsep.join(filter(None, roots))
    command = [sys.executable, __file__, name, str(sparsity)]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", CASES)
def test_peak_memory_of_training(benchmark, name: str) -> None:
    peaks = {"dense": in_a_process(name, 0.0)}
    peaks["ours"] = benchmark.pedantic(in_a_process, (name, 0.9), rounds=1)
    benchmark.extra_info["records"] = [
        {"model": name, "batch": CASES[name][1], "sparsity": 0.9, "peak bytes": peaks}
    ]


if __name__ == "__main__":
    print(train(sys.argv[1], float(sys.argv[2])))
