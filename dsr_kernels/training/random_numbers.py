"""The states of torch's generators, of all processes: a checkpoint holds them, a run goes on with
them.
"""

from __future__ import annotations

from typing import Any

import torch

from dsr_kernels.training import placement
from dsr_kernels.training.data.streams import stream
from dsr_kernels.training.world import World


def seed(world: World, number: int) -> None:
    """Seeds this process's generators: the first with `number`, each other with one of its own."""
    own = number if world.is_first else stream(number, "rank", world.rank).initial_seed()
    torch.manual_seed(own)


def collect(world: World, device: torch.device) -> dict[str, Any]:
    """For the checkpoint, the first process's states; of several processes also all, by rank."""
    own = placement.random_state(device)
    return own if world.size == 1 else {**own, "ranks": world.gather(own)}


def restore(world: World, device: torch.device, state: dict[str, Any]) -> None:
    """Goes on from what `collect` gave. Prints a line where it was another number of processes;
    then those that are new keep what they were seeded with.
    """
    ranks = state.get("ranks") or [state]
    if len(ranks) != world.size:
        print(
            f"the checkpoint is of {_processes(len(ranks))}, this is {_processes(world.size)}: "
            "sums round differently and ranks draw other random numbers from here on, so the "
            "results will not be bit-identical"
        )
    if world.rank < len(ranks):
        placement.restore_random(device, ranks[world.rank])


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"
