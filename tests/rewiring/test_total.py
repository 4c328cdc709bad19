"""`total`, the iterations of the whole training: rewires end by themselves."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import DSR, GMP, SET, SNFS, DeepR, RigL
from dsr_kernels.rewiring.schedule import Schedule


def make(method, **arguments):
    torch.manual_seed(0)
    model = nn.Sequential(SparseLinear(12, 8, nnz=40), SparseLinear(8, 8, nnz=24))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return method(model, optimizer, **arguments)


@pytest.mark.parametrize("method", [DSR, SET, RigL, SNFS])
def test_rewires_end_after_three_quarters(method):
    rewirer = make(method, every=10, total=81)
    due = [n for n in range(1, 82) if rewirer.due(n)]
    assert due == [10, 20, 30, 40, 50, 60] and rewirer.schedule.stop == 60
    assert make(method, every=10, total=81, stop=80).schedule.stop == 80


def test_what_falls_until_the_stop_falls_until_then():
    rewirer = make(RigL, total=400)
    assert rewirer.fraction.length == 300 and rewirer.fraction.at(300) == 0
    deepr = make(DeepR, total=400)
    assert deepr.temperature.length == 300 == deepr.schedule.stop
    assert make(GMP, final_sparsity=0.9, total=400).end == 300
    assert make(GMP, final_sparsity=0.9, total=400, end=350).end == 350
    assert make(RigL, total=400, length=200).fraction.length == 200


def test_nothing_is_guessed():
    with pytest.raises(ValueError, match="end: expected the iteration at which pruning ends, or"):
        make(GMP, final_sparsity=0.9)
    for wrong in (0, 2.5, "all"):
        with pytest.raises(ValueError, match="total: expected an integer of at least 1, got"):
            make(DSR, total=wrong)
    assert make(DSR).schedule.stop is None


def test_a_training_that_is_too_short_for_a_rewire_is_told():
    for method in (DSR, SET, RigL, SNFS):
        said = r"total: none of 133 iterations.*iteration 99; use a"
        with pytest.warns(UserWarning, match=said) as seen:
            make(method, total=133)
        assert [one.filename for one in seen] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(DSR, total=134)
        make(DSR, total=10, stop=0)  # as was asked for


@pytest.mark.parametrize(
    "segments,stop", [([(0, 100)], 99), ([(0, 30), (20, 100)], 99), ([(95, 7)], 97), ([(5, 3)], 5)]
)
def test_whether_a_rewire_is_ever_due(segments, stop):
    for end in (stop, stop + 1):
        schedule = Schedule.make(None, segments, end)
        assert schedule.is_ever_due() == any(schedule.due(n) for n in range(1, end + 1))
    assert Schedule.make(None, segments, None).is_ever_due()
