"""One side of the comparison in one process: a model, and every way to take a step with it.

Ours is sparse, in dsr_kernels.distributed.DistributedDataParallel; dense is in torch's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from whole_models.training import Training
from whole_models.variants import Case

from dsr_kernels.distributed import DistributedDataParallel
from dsr_kernels.rewiring import DSR

from .buckets import Watch, loopback_bytes

BUCKETS = 4  # about: on both sides, so that the smaller one overlaps as well
AT = 0.9  # the sparsity
WATCHED = 3  # steps: torch orders the buckets in the first two
AFTER_REWIRE = ("rewire", "first step after", "second", "third")

Run = Callable[[], object]


class Side:
    """Models of one side, all alike, with a batch of this process."""

    def __init__(self, name: str, case: Case, rank: int) -> None:
        self.name, self.case = name, case
        torch.manual_seed(rank + 1)
        self.images, self.labels = case.images(), case.labels()
        sizes = [parameter.numel() for parameter in self._model().parameters()]
        self.numbers = sum(sizes)
        self.cap_mb = 4 * self.numbers / BUCKETS / 2**20

    def _model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.case.make(sparsity=AT) if self.name == "ours" else self.case.make(sparse=False)

    def _parallel(self) -> nn.parallel.DistributedDataParallel:
        ours = self.name == "ours"
        kind = DistributedDataParallel if ours else nn.parallel.DistributedDataParallel
        return kind(self._model(), bucket_cap_mb=self.cap_mb)

    def _training(self, model: nn.Module) -> Training:
        return Training(model, self.images, self.labels)

    def runs(self, bucket_bytes: list[int]) -> dict[str, Run]:
        """Name -> a step, or what a step sends and nothing else."""
        plain, ddp, low = map(self._training, (self._model(), self._parallel(), self._parallel()))
        # Torch refuses bf16_compress_hook with gloo, by its name; gloo averages bfloat16 as well.
        low.model.register_comm_hook(None, Watch(bf16=True).hook)
        late = self._training(self._parallel())
        sent = [torch.zeros(count // 4) for count in bucket_bytes]
        return {
            "without communication": plain.step,
            "DDP": ddp.step,
            "DDP, bf16 hook": low.step,
            "all-reduce alone": lambda: _all_reduce(sent),
            "all-reduce after": lambda: _backward_then_all_reduce(late),
        }

    def watched(self, bf16: bool) -> tuple[Watch, float | None]:
        """The buckets of one step, and bytes on lo a step and process, of all WATCHED steps."""
        parallel, watch = self._parallel(), Watch(bf16)
        parallel.register_comm_hook(None, watch.hook)
        training = self._training(parallel)
        for _ in range(WATCHED):
            training.step()
        dist.barrier()
        before = loopback_bytes()
        dist.barrier()
        for _ in range(WATCHED):
            watch.clear()
            training.step()
        dist.barrier()
        after = loopback_bytes()
        dist.barrier()  # nobody goes on before all have read
        if before is None or after is None:
            return watch, None
        return watch, (after - before) / WATCHED / dist.get_world_size()

    def after_rewires(self) -> Callable[[], list[float]]:
        """A function that rewires and takes three steps: milliseconds of each (AFTER_REWIRE)."""
        training = self._training(self._parallel())
        rewirer = DSR(training.model, training.optimizer, prune_fraction=0.1, every=10**9)
        training.step()
        return lambda: [_timed(rewirer.rewire), *(_timed(training.step) for _ in range(3))]


def _timed(run: Run) -> float:
    dist.barrier()
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def slowest(taken: list[list[float]]) -> list[list[float]]:
    """The same of all processes: a step is over where the last one's is."""
    every: list = [None] * dist.get_world_size()
    dist.all_gather_object(every, taken)
    return [[max(times) for times in zip(*rows, strict=True)] for rows in zip(*every, strict=True)]


def rounds_of(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round; runs take turns, and the first round does not count."""
    taken = [[_timed(run) for run in runs.values()] for _ in range(rounds + 1)][1:]
    return dict(zip(runs, zip(*slowest(taken), strict=True), strict=True))


def _all_reduce(sent: list[torch.Tensor]) -> None:
    for work in [dist.all_reduce(tensor, async_op=True) for tensor in sent]:
        work.wait()


def _backward_then_all_reduce(training: Training) -> None:
    """The step that has no overlap: local gradients, then one all-reduce of all of them."""
    training.optimizer.zero_grad(set_to_none=True)
    with training.model.no_sync():
        F.cross_entropy(training.model(training.images), training.labels).backward()
    gradients = [parameter.grad for parameter in training.model.parameters()]
    flat = torch.cat([gradient.view(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    training.optimizer.step()
