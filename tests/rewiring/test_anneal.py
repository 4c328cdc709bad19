"""Values that change while training goes on, against their formulas."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import DSR, GMP, SET, DeepR, RigL
from dsr_kernels.rewiring.schedule import KINDS, Anneal, as_number, check_choice

FORMULAS = {
    "constant": lambda a, b, u: np.full_like(u, a),
    "cosine": lambda a, b, u: b + (a - b) / 2 * (1 + np.cos(np.pi * u)),
    "cubic": lambda a, b, u: b + (a - b) * (1 - u) ** 3,
    "exponential": lambda a, b, u: np.exp((1 - u) * np.log(a) + u * np.log(b)),
}
POSITIVE = st.floats(1e-12, 1e6)


@pytest.mark.parametrize("kind", KINDS)
@given(POSITIVE, POSITIVE, st.integers(0, 50), st.integers(1, 40))
def test_values_ends_and_monotony(kind, start, end, begin, length):
    anneal = Anneal(kind, start, end, begin, length)
    iterations = np.arange(begin - 3, begin + length + 4)
    values = np.array([anneal.at(int(i)) for i in iterations])
    u = np.clip((iterations - begin) / length, 0, 1)
    rounding = 0 if kind == "exponential" else 1e-12 * max(start, end)
    np.testing.assert_allclose(values, FORMULAS[kind](start, end, u), rtol=1e-9, atol=rounding)
    assert set(values[iterations <= begin]) == {start}  # the ends are exact
    last = start if kind == "constant" else end
    assert set(values[iterations >= begin + length]) == {last}
    steps = np.diff(values) * (1 if last >= start else -1)
    assert (steps >= -1e-12 * max(start, end)).all()


def test_zero_is_reached_but_not_exponentially():
    for kind in ("cosine", "cubic"):
        assert Anneal(kind, 0.3, 0.0, 0, 10).at(10) == 0
        assert Anneal(kind, 0.3, 0.0, 0, 10).at(9) > 0
    for start, end in ((0.3, 0.0), (0.0, 0.3), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="exponential one needs a start and an end above 0"):
            Anneal("exponential", start, end)
    with pytest.raises(ValueError, match="length: expected an integer of at least 1, got 0"):
        Anneal("cosine", 1.0, 0.0, 0, 0)


def test_half_way():
    assert math.isclose(Anneal("cosine", 0.3, 0.1, 5, 10).at(10), 0.2)
    assert math.isclose(Anneal("cubic", 1.0, 0.1, 0, 100).at(50), 0.1 + 0.9 / 8)
    assert math.isclose(Anneal("exponential", 1e-5, 1e-15, 0, 10).at(5), 1e-10)


def test_unknown_names_suggest_the_closest():
    with pytest.raises(
        ValueError, match=r"schedule: unknown value 'cosin'; did you mean 'cosine'?"
    ):
        Anneal("cosin", 1.0)
    with pytest.raises(ValueError, match="scope: unknown value 7; expected one of layer, global"):
        check_choice(7, "scope", ("layer", "global"))


def test_numbers_come_as_floats():
    for value in (1, 1.0, np.float32(1), np.int64(1), Fraction(1)):
        assert type(as_number(value, "x")) is float and as_number(value, "x", 1, 1, "[]") == 1.0


@pytest.mark.parametrize("value", ["0.5", None, True, [0.5], 1j, math.nan, math.inf, 10**400])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match=r"^x: expected a finite number, got "):
        as_number(value, "x")


@pytest.mark.parametrize(
    ("low", "high", "ends", "inside", "expected"),
    [
        (0, 1, "[)", [0, 0.5], r"a number in \[0, 1\)"),
        (0, 1, "(]", [0.5, 1], r"a number in \(0, 1\]"),
        (0, math.inf, "()", [0.5, 1, 2], "a finite number > 0"),
        (0, math.inf, "[)", [0, 0.5, 1, 2], "a finite number >= 0"),
    ],
)
def test_the_ends_of_an_interval(low, high, ends, inside, expected):
    for value in (-1, 0, 0.5, 1, 2):
        if value in inside:
            assert as_number(value, "x", low, high, ends) == value
        else:
            with pytest.raises(ValueError, match=f"^x: expected {expected}, got {value}$"):
                as_number(value, "x", low, high, ends)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (DSR, "power"),
        (DSR, "initial_threshold"),
        (DSR, "tolerance"),
        (DSR, "prune_fraction"),
        (SET, "fraction"),
        (SET, "final_fraction"),
        (RigL, "final_fraction"),
        (DeepR, "l1"),
        (DeepR, "eta"),
        (DeepR, "temperature"),
        (DeepR, "final_temperature"),
        (GMP, "final_sparsity"),
    ],
)
@pytest.mark.parametrize("value", ["x", (), math.nan, True])
def test_arguments_of_a_wrong_type_are_named(method, name, value):
    layer = SparseLinear(8, 8)
    needed = {"final_sparsity": 0.95, "end": 9} if method is GMP else {"stop": 9}
    with pytest.raises(ValueError, match=f"^{name}: expected a .*number.*, got "):
        method(layer, torch.optim.SGD(layer.parameters(), lr=0.1), **{**needed, name: value})


@pytest.mark.parametrize("name", ["start", "end"])
def test_ends_that_are_no_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name}: expected a finite number, got None"):
        Anneal("cosine", **{"start": 1.0, "end": 0.0, name: None})
