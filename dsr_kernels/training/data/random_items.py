"""Random numbers of code that is not ours, such as transforms: seeded, and given back after it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def own_random_numbers(seed: int | None = None) -> Iterator[None]:
    """A context whose random numbers leave those outside as they were.

    They are torch's on the CPU, numpy's and Python's, and follow from `seed` where it is given.
    """
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        if seed is not None:
            seed_all(seed)
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def seed_all(seed: int) -> None:
    """Seeds torch's generator of the CPU, numpy's and Python's. seed: 0 to 2^32 - 1."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
