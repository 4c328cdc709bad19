"""The random numbers below every pattern: Philox, the Feistel permutation and `sample_pattern`."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr_kernels.backends.native import _C


def chi_square_z(counts: Counter, cells: int, draws: int) -> float:
    """How many standard deviations the chi-square statistic lies from its mean, for equal cells."""
    expected = draws / cells
    missing = cells - len(counts)
    chi2 = sum((c - expected) ** 2 / expected for c in counts.values()) + missing * expected
    return (chi2 - (cells - 1)) / math.sqrt(2 * (cells - 1))


def sample_pattern(rows: int, row_length: int, nnz: int, seed: int):
    crow = torch.full((rows + 1,), -7, dtype=torch.int32)
    col = torch.full((nnz,), -7, dtype=torch.int32)
    _C.sample_pattern(rows, row_length, nnz, seed, crow.data_ptr(), col.data_ptr())
    return crow, col


def linear_positions(crow: torch.Tensor, col: torch.Tensor, row_length: int) -> torch.Tensor:
    row = np.repeat(np.arange(len(crow) - 1), np.diff(crow.numpy()))
    return torch.from_numpy(row * row_length + col.numpy())


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers published with Random123 (Salmon et al., SC 2011)
        ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0_A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    assert _C._philox(counter, key) == expected


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 255, 256, 257, 1000, 4096, 9973])
def test_feistel_is_a_permutation(n):
    assert sorted(_C._feistel(n, 5, 0, 0, list(range(n)))) == list(range(n))


@pytest.mark.parametrize("n", [2**31 + 11, 2**61 - 1, 2**62])
def test_feistel_reaches_all_of_a_huge_range(n):
    points = _C._feistel(n, 5, 0, 0, list(range(10_000)))
    assert len(set(points)) == 10_000
    assert max(points) < n
    eighths = Counter(p * 8 // n for p in points)
    assert abs(chi_square_z(eighths, 8, 10_000)) < 5


def test_feistel_differs_in_every_part_of_its_counter():
    draws = [
        tuple(_C._feistel(10**6, seed, step, layer, list(range(4))))
        for seed, step, layer in [(0, 0, 0), (1, 0, 0), (2**40, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize(("n", "drawn"), [(2, 1), (3, 2), (5, 2), (6, 3), (16, 2), (23, 2)])
def test_feistel_draws_every_ordered_subset_equally_often(n, drawn):
    seeds = 20_000
    counts = Counter(tuple(_C._feistel(n, s, 3, 1, list(range(drawn)))) for s in range(seeds))
    assert set(counts) <= set(itertools.permutations(range(n), drawn))
    assert abs(chi_square_z(counts, math.perm(n, drawn), seeds)) < 5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 60), st.floats(0, 1), st.integers(0, 2**64 - 1))
def test_sample_pattern_is_sorted_distinct_and_complete(rows, row_length, share, seed):
    nnz = round(share * rows * row_length)
    crow, col = sample_pattern(rows, row_length, nnz, seed)
    assert crow[0] == 0 and crow[-1] == nnz
    positions = linear_positions(crow, col, row_length)
    assert (positions.diff() > 0).all()
    assert nnz == 0 or (col.min() >= 0 and col.max() < row_length)


def test_sample_pattern_is_uniform_over_cells_and_rows():
    cells, rows = Counter(), Counter()
    for seed in range(3000):
        crow, col = sample_pattern(6, 9, 5, seed)
        positions = linear_positions(crow, col, 9).tolist()
        cells.update(positions)
        rows.update(p // 9 for p in positions)
    # drawn without replacement, counts vary a little less than a multinomial
    assert -5 < chi_square_z(cells, 54, 15_000) < 4
    assert -5 < chi_square_z(rows, 6, 15_000) < 4


def test_sample_pattern_beyond_two_to_the_31_positions():
    rows, row_length, nnz = 70_000, 50_000, 200_000
    crow, col = sample_pattern(rows, row_length, nnz, 1)
    positions = linear_positions(crow, col, row_length)
    assert (positions.diff() > 0).all()
    assert positions[-1] > 2**31
    tenths = Counter((positions * 10 // (rows * row_length)).tolist())
    assert abs(chi_square_z(tenths, 10, nnz)) < 5


def test_sample_pattern_refuses_more_entries_than_positions():
    with pytest.raises(ValueError, match=r"expected nnz in \[0, 12\] for 3 x 4, got 13"):
        sample_pattern(3, 4, 13, 0)
