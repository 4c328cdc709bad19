"""Values that change while training goes on, against their formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsr_kernels.rewiring.schedule import KINDS, Anneal, check_choice

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
