"""The processes of a run, as torchrun starts them: which this one is, and what they exchange.

A run of one process is a `World` of its own: nothing is set up, and what is summed stays as it is.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from dsr_kernels.errors import Interrupted, SaidElsewhere, Terminated, UsageError, shown
from dsr_kernels.nn import SparseModule
from dsr_kernels.training.data.streams import Share
from dsr_kernels.training.failures import Failures
from dsr_kernels.training.recipe.schema import Distributed, Recipe
from dsr_kernels.training.run.folder import Run, resume_command

T = TypeVar("T")


class World:
    """The processes of this run; all of them make each call, in the same order. This one alone
    unless `joined` says otherwise.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        store: dist.Store | None = None,
        timeout: float = 0.0,
        restarts: int = 0,
        job: str = "",
    ) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.job = job  # of torchrun: the same after a restart; "" where it is not known
        everybody = self.gather((platform.node(), restarts))
        self.hosts = [host for host, _ in everybody]
        self.restarts = max(count for _, count in everybody)  # a node that came later has fewer
        self.failures: Failures | None = None
        if store is not None:
            self.failures = Failures(store, rank, self.hosts, timeout)
        self.run: Run | None = None  # what is trained, once that is known

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints for all."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This process's part of each batch."""
        return Share(self.rank, self.size)

    def sums(self, *numbers: float) -> list[float]:
        """Each number summed over the processes, in float64."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def wait(self) -> None:
        """Until all processes are here."""
        self.sums(0.0)

    def in_turns(self, work: Callable[[], T]) -> T:
        """What `work` gives, done by the first process, then by the first of each other host, then
        by the rest: what one downloads the later ones find. Where one fails, all end.
        """
        turn = 0 if self.is_first else 1 if self.local_rank == 0 else 2
        for _ in range(turn):
            self.wait()
        result = work()
        for _ in range(turn, 3):
            self.wait()
        return result

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, by rank; pickled on the way."""
        found = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Raises UsageError, in all processes, where one has other `facts` than the first."""
        everybody = self.gather(dict(facts))
        for rank, theirs in enumerate(everybody):
            for name, value in everybody[0].items():
                if theirs.get(name) != value:
                    raise self.everywhere(
                        UsageError(
                            f"{name}: expected the same in all processes, got {shown(value)} on "
                            f"rank 0 and {shown(theirs.get(name))} on rank {rank}"
                        )
                    )

    def device_name(self, name: str) -> str:
        """The device of this process where the run's is `name`. Raises UsageError where that is one
        certain GPU for several processes.
        """
        if self.size == 1 or name == "cpu":
            return name
        if name != "cuda":
            raise self.everywhere(
                UsageError(
                    f"--device: expected cpu or cuda with {self.size} processes, each of which "
                    f"takes the GPU of its LOCAL_RANK, got {name!r}"
                )
            )
        return f"cuda:{self.local_rank}"

    def first_says(self, yes: bool) -> bool:
        """The first process's answer, in all of them."""
        return self.sums(float(yes and self.is_first)) != [0.0]

    def check(self, recipe: Recipe, device: torch.device, options: Mapping[str, Any]) -> None:
        """Raises UsageError for what these processes cannot do together. options: of a run."""
        if self.size > 1 and options.get("compare_dense"):
            raise self.everywhere(
                UsageError(
                    "--compare-dense: times one process; let the run finish without it, then give "
                    "it with --resume and without torchrun"
                )
            )
        if (batch := recipe.training.batch_size) % self.size:
            raise self.everywhere(
                UsageError(
                    f"recipe: training.batch_size: expected a multiple of the {self.size} "
                    f"processes, which share each batch, got {batch}. A run keeps its batch size: "
                    f"train it by {' or '.join(map(str, _nearest(batch, self.size)))} processes"
                )
            )
        if self.size > 1 and recipe.distributed.sync_batch_norm and device.type == "cpu":
            raise self.everywhere(
                UsageError(
                    "recipe: distributed.sync_batch_norm: torch synchronizes batch norm on GPUs "
                    "only; train with --device cuda, or set it to false"
                )
            )

    def prepare(self, model: nn.Module, settings: Distributed) -> nn.Module:
        """`model` with the batch norm that the recipe wants; its states stay the same."""
        if self.size == 1 or not settings.sync_batch_norm:
            return model
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)

    def wrap(self, model: nn.Module, settings: Distributed) -> nn.Module:
        """`model` so that a backward pass averages gradients over the processes. Its parameters and
        buffers become those of the first.
        """
        if self.size == 1:
            return model
        from dsr_kernels.distributed import DistributedDataParallel

        return DistributedDataParallel(model, bucket_cap_mb=settings.bucket_mb)

    @torch.no_grad()
    def share_buffers(self, model: nn.Module) -> None:
        """Gives all processes the first one's running statistics, as each training step does."""
        if self.size == 1:
            return
        for module in model.modules():
            if not isinstance(module, SparseModule):  # whose patterns are the same everywhere
                for buffer in module.buffers(recurse=False):
                    dist.broadcast(buffer, src=0)

    def showing_life(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the others can see that this process lives."""
        return contextlib.nullcontext() if self.failures is None else self.failures.showing_life()

    def ending(self, error: BaseException) -> BaseException:
        """The error that this process ends with after `error`, as its others do."""
        run, way_out = self.run, ""
        if run is not None and (run.folder / "recipe.toml").is_file():
            way_out = f"; {run.kept()}; go on with: {resume_command(run.folder)}"
        elif isinstance(error, Terminated):
            way_out = Terminated.NOTHING
        if self.failures is None:
            stopped = isinstance(error, Terminated)
            return Interrupted(f"{error}{way_out}", error.exit_code) if stopped else error
        return self.failures.ending(error, way_out)

    def everywhere(self, error: Exception) -> Exception:
        """What to raise where all processes meet the same error: one says it, the others end."""
        return error if self.is_first else SaidElsewhere(error)


def _nearest(batch: int, size: int) -> list[int]:
    """The next smaller and the next larger number of processes that divide a batch."""
    smaller = next(number for number in range(min(size, batch), 0, -1) if batch % number == 0)
    larger = range(size + 1, min(batch, 4 * size) + 1)
    return [smaller, *[number for number in larger if batch % number == 0][:1]]


ALONE = World()
