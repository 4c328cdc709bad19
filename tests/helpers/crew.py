"""`dsr` as torchrun starts it, on several processes of this machine; imports are paid once."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

PATIENCE = 60  # seconds for a run
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "torch",
        "torch.utils.tensorboard",
        "safetensors.torch",
        "sklearn.datasets",
        "torch.optim.sgd",
        "torch._dynamo",
        "dsr_kernels.distributed",
        "dsr_kernels.training.start",
    ]
)
Prepare = Callable[[int], None]


class Ended(NamedTuple):
    """How one rank has ended: its exit code, negative for a signal, and all it has written."""

    code: int
    text: str

    @property
    def sentences(self) -> list[str]:
        """What it says of its end."""
        return [line for line in self.text.split("\n") if line.startswith("dsr: ")]


def command(size: int) -> str:
    """What starts `dsr` on so many processes, as a sentence gives it."""
    return f"torchrun --nproc-per-node {size} -m dsr_kernels"


def open_store() -> dist.TCPStore:
    """As torchrun's agent, this process holds it. So it outlives the ranks, and those that are
    started again find what the former ones have left.
    """
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


class Crew:
    """The processes of a run. `prepare(rank)`, at the top of a module, is called in each first."""

    def __init__(
        self,
        folder: Path,
        arguments: list[str] | Callable[[int], list[str]],
        size: int = 2,
        prepare: Prepare | None = None,
        restarts: int | list[int] = 0,  # as torchrun's agents count them, each its own
        store: dist.TCPStore | None = None,
    ) -> None:
        self.store = store or open_store()
        self.outputs = [folder / f"output{rank}.txt" for rank in range(size)]
        self.processes = []
        for rank in range(size):
            own = arguments if isinstance(arguments, list) else arguments(rank)
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
                "GROUP_WORLD_SIZE": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": str(
                    restarts if isinstance(restarts, int) else restarts[rank]
                ),
            }
            task = (self.outputs[rank], own, variables, rank, prepare)
            self.processes.append(_context.Process(target=_work, args=task, daemon=False))
        for process in self.processes:
            process.start()

    def signal(self, rank: int, signum: int) -> None:
        os.kill(self.processes[rank].pid, signum)

    def wait(self, ranks: list[int] | None = None) -> list[Ended]:
        """Until the ranks have ended, all of them by default."""
        ranks = list(range(len(self.processes))) if ranks is None else ranks
        end = time.monotonic() + PATIENCE
        for rank in ranks:
            self.processes[rank].join(max(0.0, end - time.monotonic()))
        codes = [self.processes[rank].exitcode for rank in ranks]
        texts = [self.outputs[rank].read_text() for rank in ranks]
        if None in codes:
            self.end()
            raise AssertionError(f"not ended after {PATIENCE} s: {codes} {texts}")
        return [Ended(*pair) for pair in zip(codes, texts, strict=True)]

    def end(self) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()


def _work(
    output: Path, arguments: list[str], variables: dict[str, str], rank: int, prepare: Prepare
) -> None:
    import torch

    from dsr_kernels.cli import main

    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.dump_traceback_later(PATIENCE - 5, file=sys.__stderr__)  # where it hangs
    os.environ.update(variables)
    torch.set_num_threads(1)
    if prepare is not None:
        prepare(rank)
    os._exit(main(arguments))


@contextmanager
def crew(*args, **options):
    """A Crew, none of which outlives the block."""
    made = Crew(*args, **options)
    try:
        yield made
    finally:
        made.end()


def run(*args, **options) -> list[Ended]:
    """How all ranks of a Crew end."""
    with crew(*args, **options) as made:
        return made.wait()
