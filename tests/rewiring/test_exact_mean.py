"""SNFS' mean momentum decides over positions, so it must be the same in every process."""

import math
from fractions import Fraction

import pytest
import torch

from dsr_kernels.rewiring.methods.snfs import exact_mean


def test_the_mean_is_the_same_in_any_order():
    torch.manual_seed(0)
    numbers = torch.randn(100_000, dtype=torch.float64).abs()
    mean = sum(map(Fraction, numbers.tolist())) / numbers.numel()
    orders = [numbers, numbers.flip(0), numbers[torch.randperm(len(numbers))].view(-1, 4)]
    found = {exact_mean(order) for order in orders}
    assert len(found) == 1
    assert abs(found.pop() / mean - 1) < Fraction(1, 10**12)
    assert exact_mean(torch.tensor([1.0, 3.0]).double()) == 2


@pytest.mark.parametrize("largest", [1e-320, 1e-200, 1.0, 1e300, 1.7e308])
def test_numbers_of_any_size(largest):
    numbers = torch.tensor([largest, 0.0, largest / 4, largest], dtype=torch.float64)
    exact = sum(map(Fraction, numbers.tolist())) / 4
    assert abs(exact_mean(numbers) - exact) <= exact / 10**12 or largest < 1e-280
    assert exact_mean(numbers * 0) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite(bad):
    assert exact_mean(torch.tensor([1.0, bad], dtype=torch.float64)) is None
