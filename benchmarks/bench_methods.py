"""Measures what each method adds to a training step: WRN-28-2, 100 images, 90 % sparse.

    python -m pytest benchmarks/bench_methods.py --benchmark-json=methods.json

A plain step (static) and one in which the method acts are timed in turn. Times are recorded and
never asserted. What is asserted is that the non-zeros add up.
"""

import statistics
import time

import pytest
import torch
from torch.nn import functional as F

from dsr_kernels.models import wrn_28
from dsr_kernels.rewiring import METHODS

ROUNDS, INTERVAL = 21, 100  # the usual number of iterations from rewire to rewire
OPTIONS = {
    "dsr": {"prune_fraction": 0.138, "every": 1},
    "set": {"fraction": 0.138, "every": 1},
    "rigl": {"fraction": 0.3, "every": 1, "length": 100_000},
    "snfs": {"fraction": 0.3, "every": 1, "length": 100_000},
    "deepr": {"length": 100_000},
}


class Training:
    """A model with its optimizer and a method."""

    def __init__(self, method: str) -> None:
        self.model = wrn_28(2, 0.9, generator=torch.Generator().manual_seed(0))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, 0.9, nesterov=True)
        self.rewirer = METHODS[method](self.model, self.optimizer, **OPTIONS.get(method, {}))
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(100, 3, 32, 32, generator=generator)
        self.labels = torch.randint(0, 10, (100,), generator=generator)

    def step(self) -> float:
        """Runs one step; returns its seconds."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()
        self.rewirer.step()
        return time.perf_counter() - start


@pytest.mark.parametrize("method", OPTIONS)
def test_step_with_a_method(benchmark, method):
    plain, own = Training("static"), Training(method)
    nnz = own.rewirer.nnz
    for training in (plain, own):
        for _ in range(3):
            training.step()
    times = [(plain.step(), own.step()) for _ in range(ROUNDS)]
    plain_times, own_times = zip(*times, strict=True)
    benchmark.pedantic(own.step, rounds=3)
    assert own.rewirer.nnz == nnz
    extra = statistics.median(own_times) - statistics.median(plain_times)
    each = 1 if method == "deepr" else INTERVAL
    benchmark.extra_info.update(
        plain_min=min(plain_times),
        plain_median=statistics.median(plain_times),
        acting_min=min(own_times),
        acting_median=statistics.median(own_times),
        extra_per_step=extra / each,
        share_of_step=extra / each / statistics.median(plain_times),
        threads=torch.get_num_threads(),
    )
