"""Processes that train together, started once for many tests."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 240  # seconds for one task; a process that waits for another gives up before
GIVES_UP = datetime.timedelta(seconds=120)


class Team:
    """`size` processes with a default process group, gloo's on CPUs or nccl's on a GPU each."""

    def __init__(self, size: int, backend: str, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.size, self.pipes, self.processes = size, [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            arguments = (rank, size, backend, str(folder / "meeting"), theirs)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, task: Callable[..., Any], *arguments: Any) -> list[Any]:
        """task(rank, size, *arguments) in each process; what each returns.

        `task` is a function at the top of a module. Raises AssertionError with the traceback of the
        first process that failed; then the team is gone.
        """
        try:
            for pipe in self.pipes:
                pipe.send((task, arguments))
            answers = [self._answer(rank) for rank in range(self.size)]
        except BaseException:
            self.end()
            raise
        return answers

    def _answer(self, rank: int) -> Any:
        assert self.pipes[rank].poll(PATIENCE), f"rank {rank}: no answer in {PATIENCE} s"
        answer, trace = self.pipes[rank].recv()
        assert trace is None, f"rank {rank}: {trace}"
        return answer

    @property
    def is_there(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def end(self) -> None:
        for pipe in self.pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def _work(rank: int, size: int, backend: str, meeting: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend, f"file://{meeting}", rank=rank, world_size=size, timeout=GIVES_UP
    )
    while (task := pipe.recv()) is not None:
        function, arguments = task
        try:
            pipe.send((function(rank, size, *arguments), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
    dist.destroy_process_group()


def device() -> torch.device:
    """Where this process's model belongs."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
