"""The hash by which processes compare what decides a rewire."""

from __future__ import annotations

import math

import pytest
import torch

from dsr_kernels.rewiring import agreement
from dsr_kernels.rewiring.agreement import digest


def test_a_digest_is_of_bytes_places_and_lengths():
    nan = torch.tensor([math.nan])
    other_nan = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    zeros = torch.zeros(4)
    alike = [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])),
        (nan, nan.clone()),
        (torch.arange(6.0).view(2, 3).T, torch.tensor([[0.0, 3], [1, 4], [2, 5]])),
    ]
    for one, other in alike:
        assert digest(one).item() == digest(other).item()
    different = [
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (nan, other_nan),
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])),
        (zeros, torch.zeros(5)),
        (zeros[:0], zeros[:1]),
    ]
    for one, other in different:
        assert digest(one).item() != digest(other).item()
    assert digest(zeros, zeros[:1]).item() != digest(zeros[:1], zeros).item()
    assert digest(zeros[:2], zeros[:2]).item() != digest(zeros).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int8])
def test_digests_do_not_collide(dtype):
    """Of single bits that are set among many numbers: a weak hash would lose some."""
    size = torch.empty(0, dtype=dtype).element_size()
    word = agreement.WORDS[size]
    found = set()
    for place in range(64):
        for bit in range(8 * size - 1):
            words = torch.zeros(64, dtype=word)
            words[place] = 1 << bit
            found.add(digest(words.view(dtype)).item())
    assert len(found) == 64 * (8 * size - 1)
    low = {number & 0xFFF for number in found}
    assert len(low) > 0.3 * min(4096, len(found))


def test_a_digest_does_not_depend_on_how_it_is_cut(monkeypatch):
    values = torch.randn(1000)
    whole = digest(values).item()
    monkeypatch.setattr(agreement, "CHUNK", 7)
    assert digest(values).item() == whole
