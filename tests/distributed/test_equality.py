"""Two processes with half of a batch each do what one process does with all of it."""

from __future__ import annotations

import pytest
from helpers.parallel_training import METHODS, assert_equal, train

LENGTH = {"snfs": 40, "deepr": 40}


def in_a_team(rank: int, size: int, method: str, iterations: int):
    return train(method, iterations, rank, size)


@pytest.mark.parametrize("method", METHODS)
def test_processes_train_as_one_does(two, method):
    iterations = LENGTH.get(method, 100)
    states = two.run(in_a_team, method, iterations)
    assert_equal(*states, exactly=True)
    assert_equal(states[0], train(method, iterations))
