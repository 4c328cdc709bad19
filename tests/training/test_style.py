"""Axes that can be read: enough labels, in plain numbers, within what is shown."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from dsr_kernels.training.report import style


def labels(values) -> list[str]:
    """What a logarithmic axis of these values is labelled with."""
    axes = Figure().subplots()
    axes.plot(values)
    style.log_axis(axes.yaxis, axes.set_yscale)
    low, high = axes.get_ylim()
    ticks = axes.get_yticks()
    assert all(low <= tick <= high for tick in ticks)
    return axes.yaxis.get_major_formatter().format_ticks(ticks)


@pytest.mark.parametrize(
    "values,expected",
    [
        ([1, 10_000], ["1", "10", "100", "1,000", "10,000"]),
        ([0.01, 0.5], ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]),
        ([5.2, 7.9], ["5.5", "6", "6.5", "7", "7.5", "8"]),
        ([3e-4, 5e-4], ["0.0003", "0.00035", "0.0004", "0.00045", "0.0005"]),
    ],
)
def test_ticks_get_finer_where_they_would_be_few(values, expected):
    assert labels(values) == expected


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1.001, 1e9))
def test_at_least_three_different_labels_and_not_too_many(low, ratio):
    found = labels([low, low * ratio])
    assert 3 <= len(found) == len(set(found)) <= 20


def test_one_epoch_is_a_dot_over_a_whole_number():
    axes = Figure().subplots()
    axes.plot([1], [50], marker=style.marker([(1, 50)]))
    style.whole_epochs(axes)
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]
    assert axes.lines[0].get_marker() == "o"
    assert style.marker([(epoch, 50) for epoch in range(31)]) is None
