"""Processes that read the batches of a data set while the run trains on earlier ones."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Protocol

import torch
from torch.utils.data import DataLoader

from dsr_kernels.errors import UsageError
from dsr_kernels.training.data.streams import Batches

SIGNALS = {signal.SIGINT, signal.SIGTERM}
Chunk = tuple[torch.Tensor, torch.Tensor]  # images [B, ...], labels [B]


class Chunks(Protocol):
    """What workers read: all batches of an epoch, in order."""

    def __len__(self) -> int: ...

    def __getitem__(self, batch: int) -> Chunk | UsageError:
        """One batch; an error is returned, as one raised in a worker arrives as a traceback."""


def read(chunks: Chunks, workers: int) -> Batches:
    """The batches in order. Closing this iterator ends the workers."""
    made = map(chunks.__getitem__, range(len(chunks)))
    if workers and len(chunks):
        made = _start_workers(chunks, min(workers, len(chunks)))
    try:
        for result in made:
            if isinstance(result, UsageError):
                raise result
            yield result
    finally:
        made = result = None  # ends the workers now, even where a traceback keeps this frame


def _start_workers(chunks: Chunks, workers: int) -> Iterator[Chunk | UsageError]:
    with warnings.catch_warnings():
        # The user may choose more workers than cores, for slow disks.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = DataLoader(
            chunks,
            batch_size=None,  # each chunk is a batch already
            num_workers=workers,
            # Python 3.14's default starts a server: it shares no arrays and is another parent.
            multiprocessing_context="fork",
            worker_init_fn=_obey_the_parent_only,
            generator=torch.Generator(),  # else it draws from torch's own
        )
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited by the workers
        try:
            return iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey_the_parent_only(_worker: int) -> None:
    """Makes a worker ignore signals, except a SIGTERM that the run itself sends.

    A Ctrl-C or SIGTERM to the whole group of processes must not end a worker, since the run needs
    it to reach a safe point.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
