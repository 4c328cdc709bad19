"""What is too large for this machine, or for what a file claims to be: known before it is read."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from dsr_kernels.errors import UsageError

CONTROL_GROUPS = (  # of a container: the most memory it may use
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
MOST_FILE_BYTES = 2**28  # of one image, or one batch of CIFAR's, which has 31 MB
ADVICE = (
    "model.width, data.image_size, training.batch_size and training.eval_batch_size of the recipe "
    "decide how much it takes"
)


def memory_bytes() -> int:
    """The most memory that this process can ever have."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    for path in CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError):  # none, or "max"
            limits.append(int(path.read_text()))
    return min(limits)


def check_memory(size: int, what: str, way_out: str) -> None:
    """Raises UsageError where `size` bytes of `what` are more than all memory."""
    if size > (most := memory_bytes()):
        raise UsageError(
            f"{what} takes at least {size / 2**30:,.1f} GiB, more than the {most / 2**30:,.1f} GiB "
            f"that this process may use; {way_out}"
        )


def out_of_memory(error: Exception) -> bool:
    """Whether `error` says that there is no memory left: Python's, torch's or CUDA's."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextlib.contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Raises UsageError where memory runs out during `what`."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise UsageError(f"out of memory while {what}; {ADVICE}") from None
