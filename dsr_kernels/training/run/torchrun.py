"""What torchrun says of its processes, in their environment."""

from __future__ import annotations

import os
from typing import NamedTuple

from dsr_kernels.errors import UsageError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
RESTARTS = "TORCHELASTIC_RESTART_COUNT"
WAY_OUT = "start with torchrun, or unset RANK to train with one process"


class Launched(NamedTuple):
    """Which of several processes this one is, and which of its machine's."""

    rank: int
    size: int
    local_rank: int


def launched() -> Launched | None:
    """What torchrun has started this process as; None where it trains alone.

    Raises UsageError where the variables are not as torchrun sets them.
    """
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if "RANK" not in given or given.get("WORLD_SIZE", "1") == "1":
        return None
    if lacking := [name for name in VARIABLES if name not in given]:
        raise UsageError(
            f"environment: RANK and WORLD_SIZE={given['WORLD_SIZE']} are set, but not "
            f"{', '.join(lacking)}, as torchrun does; {WAY_OUT}"
        )
    for name in NUMBERS:
        if not _is_number(given[name]):
            raise UsageError(
                f"environment: {name}: expected a whole number, as torchrun sets it, got "
                f"{given[name]!r}; {WAY_OUT}"
            )
    rank, size, local_rank = (int(given[name]) for name in NUMBERS[:3])
    if rank >= size:
        raise UsageError(
            f"environment: RANK: expected less than WORLD_SIZE={size}, got {rank}; {WAY_OUT}"
        )
    return Launched(rank, size, local_rank)


def restarts() -> int:
    """How often torchrun has started the processes of this machine again, after a failure."""
    count = os.environ.get(RESTARTS) or "0"
    if not _is_number(count):
        raise UsageError(
            f"environment: {RESTARTS}: expected a whole number, as torchrun sets it, got {count!r}"
        )
    return int(count)


def has_store() -> bool:
    """Whether torchrun's agent holds a store that all its processes reach."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and "RANK" in os.environ


def command() -> str:
    """What starts `dsr` with as many processes as this one was started with, for a message."""
    try:
        this = launched()
    except UsageError:
        this = None
    if this is None:
        return "dsr"
    each = os.environ.get("LOCAL_WORLD_SIZE", this.size)
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    where = "" if nodes == "1" else f"--nnodes {nodes} ... "
    return f"torchrun {where}--nproc-per-node {each} -m dsr_kernels"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
