"""How the processes that torchrun has started become those of a run."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import uuid
from collections.abc import Iterator
from typing import NoReturn

import torch
import torch.distributed as dist

from dsr_kernels.errors import SystemFailed, Terminated, UsageError
from dsr_kernels.training.failures import first_line
from dsr_kernels.training.meeting import private_part
from dsr_kernels.training.recipe.schema import Distributed
from dsr_kernels.training.run import torchrun
from dsr_kernels.training.world import World

EARLY_SECONDS = 60.0  # so long one that has nothing to train waits for the others, to say so
# The last process group of this process. Where the last reference is that of DDP's reducer, torch
# joins gloo's threads with Python's lock in its hand, and they may be waiting for that.
_kept_alive: list[dist.ProcessGroup | None] = []


@contextlib.contextmanager
def joined(settings: Distributed) -> Iterator[World]:
    """The processes of this run, as torchrun's variables say. Standard output is the first one's.

    Raises:
        UsageError: some variables are missing.
        SystemFailed: the processes do not find each other, or one is lost.
        Interrupted: SIGTERM has come outside of the training loop.
        SaidElsewhere: this process ends as all do, and another says why.
    """
    launched = torchrun.launched()
    if launched is None:
        world = World(job=_job_of_one())
        try:
            yield world
        except Terminated as error:
            raise world.ending(error) from None
        return
    restarts = torchrun.restarts()
    timeout = settings.timeout_seconds
    limit = datetime.timedelta(seconds=timeout)
    several = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=limit))
        store.set_timeout(limit)
        job = job_in(store)
        store = private_part(store, rank, size, timeout)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if several else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=limit,
        )
        _kept_alive[:] = [dist.group.WORLD]
        own = dist.PrefixStore("dsr", store)
        world = World(rank, size, launched.local_rank, own, timeout, restarts, job)
    except (RuntimeError, OSError, ValueError) as error:
        raise SystemFailed(
            f"the processes of torchrun have not found each other within {timeout:g} seconds "
            f"(distributed.timeout_seconds): {first_line(error)}"
        ) from None
    failed = True
    try:
        with world.showing_life(), open(os.devnull, "w") as nowhere:
            target = sys.stdout if world.is_first else nowhere
            with contextlib.redirect_stdout(target):
                yield world
        failed = False
    except BaseException as error:
        ending = world.ending(error)
        if ending is error:
            raise
        raise ending from None
    finally:
        if not (failed and several):  # NCCL would wait for what will never come
            dist.destroy_process_group()


def job_in(store: dist.Store) -> str:
    """The name of torchrun's job. Its agent keeps the store while it starts processes again."""
    return store.compare_set("job of dsr", "", uuid.uuid4().hex).decode()


def _job_of_one() -> str:
    """The same where torchrun has started one process only; "" where it has not."""
    if not torchrun.has_store():
        return ""
    with contextlib.suppress(RuntimeError, OSError, ValueError):  # then it is an ordinary run
        return job_in(next(dist.rendezvous("env://"))[0])
    return ""


def end_together(error: UsageError) -> NoReturn:
    """Raises what this process has met before it joined the others, such as a recipe that is not
    there. Where all meet it, one says it.
    """
    never_came = contextlib.suppress(SystemFailed)
    with never_came, joined(Distributed(timeout_seconds=EARLY_SECONDS)):
        raise error
    raise error
