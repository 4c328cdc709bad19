"""The random states of all processes are in the checkpoint, each goes on with its own."""

from __future__ import annotations

import torch

from dsr_kernels.training import placement, random_numbers
from dsr_kernels.training.world import World


def world_of(rank: int, size: int, gathered: list | None = None) -> World:
    """What process `rank` of `size` sees; `gathered` collects what each has given."""
    world = World(rank)
    world.size = size
    world.gather = lambda value: gathered.append(value) or gathered
    return world


def test_each_process_draws_its_own_numbers_and_goes_on_with_them(capsys):
    before, gathered, expected = torch.get_rng_state(), [], []
    try:
        for rank in range(3):
            world = world_of(rank, 3, gathered)
            random_numbers.seed(world, 7)
            torch.rand(5)
            state = random_numbers.collect(world, placement.CPU)
            expected.append(torch.rand(4).tolist())
        assert len({tuple(numbers) for numbers in expected}) == 3
        for rank in range(3):
            random_numbers.restore(world_of(rank, 3), placement.CPU, state)
            assert torch.rand(4).tolist() == expected[rank]
        assert capsys.readouterr().out == ""
        random_numbers.restore(world_of(0, 2), placement.CPU, state)
        assert torch.rand(4).tolist() == expected[0]
        assert "of 3 processes, this is 2 processes" in capsys.readouterr().out
        random_numbers.seed(world_of(3, 4), 7)
        own = torch.get_rng_state()
        random_numbers.restore(world_of(3, 4), placement.CPU, state)  # it was not there
        assert torch.equal(own, torch.get_rng_state())
    finally:
        torch.set_rng_state(before)


def test_the_first_process_draws_what_a_single_one_does():
    before = torch.get_rng_state()
    try:
        random_numbers.seed(world_of(0, 2), 7)
        first = torch.rand(4)
        torch.manual_seed(7)
        assert torch.equal(first, torch.rand(4))
    finally:
        torch.set_rng_state(before)
