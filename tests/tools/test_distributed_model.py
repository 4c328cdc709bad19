"""The model of a step on many GPUs, against what can be worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
try:
    import distributed_model as model
finally:
    sys.path.pop(0)


def test_a_ring_sends_almost_twice_the_bytes():
    """100 MB over 100 Gb/s, which is 12.5 MB in a millisecond."""
    hop = model.HOP_MS
    assert model.ring_ms(100e6, 2, 100) == pytest.approx(8 + 2 * hop)
    assert model.ring_ms(100e6, 8, 100) == pytest.approx(14 + 14 * hop)
    assert model.ring_ms(100e6, 8, 25) == pytest.approx(56 + 14 * hop)


def test_buckets_are_those_of_torch(monkeypatch):
    """What fills one is its last gradient; the rest is one more. By default the first is small."""
    monkeypatch.setattr(model, "CAPS_MB", (2, 1))
    monkeypatch.setattr(model, "FIRST_BUCKET", 400)
    mega = 2**18  # numbers in a MiB
    sizes = [100, mega, mega, mega, mega, 7]
    gradients = [model.Gradient(size, 0.1 * i) for i, size in enumerate(sizes)]
    parameters = [nn.Parameter(torch.empty(size)) for size in sizes]
    for cap_mb, limits in ((2, [400, 2 * 2**20]), (1, [2**20])):
        of_torch, _ = torch.distributed._compute_bucket_assignment_by_size(parameters, limits)
        made = [tuple(bucket) for bucket in model.buckets(gradients, cap_mb)]
        assert made == [(sum(sizes[i] for i in each), 0.1 * each[-1]) for each in of_torch]
        assert len(made) > 3


def test_what_overlaps_costs_nothing():
    """Of 30 ms the backward pass is 20. A bucket of 1e6 floats takes 2 GPUs at 32 Gb/s 1 ms."""
    link = 4, 2, 32
    sending = model.ring_ms(4e6, 2, 32)
    early, late = model.Gradient(10**6, 0.25), model.Gradient(10**6, 1.0)
    assert sending == pytest.approx(1 + 2 * model.HOP_MS)
    assert model.step_ms(30, [early], *link) == pytest.approx(30)
    assert model.step_ms(30, [early, late], *link) == pytest.approx(30 + sending)
    many = [early] * 40  # begin after 5 ms, one after the other
    assert model.step_ms(30, many, *link) == pytest.approx(10 + 5 + 40 * sending)


def test_gradients_come_from_the_last_layer_on():
    small = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))
    found = model.gradients_of(small, {"0": 0.6, "2": 0.4})
    assert found == [(3, 0.4), (6, 0.4), (2, 1.0), (8, 1.0)]
