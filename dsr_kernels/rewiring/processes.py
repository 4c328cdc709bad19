"""The processes that train one model together, each on its part of a batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsr_kernels.nn.accumulators import FOLLOWS, parallel_of
from dsr_kernels.rewiring.layers import SparseLayer


class Processes:
    """A process group, and the device that its tensors are to be on. Every call is a collective:
    all processes make it, in the same order.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.group, self.device = group, device

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    def rank(self, index: int) -> int:
        """What a message calls the process that is the group's number `index`."""
        return dist.get_global_rank(self.group, index)

    def gather(self, numbers: Tensor) -> Tensor:
        """[processes, ...] int64 on the CPU: those of each. numbers: [...] int64."""
        own = numbers.to(self.device).contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own, group=self.group)
        return torch.stack(found).cpu()

    def gather_objects(self, value: Any) -> list[Any]:
        """What each of them gives, pickled on the way."""
        found = [None] * self.size
        with self._on_device():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def _on_device(self) -> AbstractContextManager[Any]:
        """nccl sends objects by the current GPU, which need not be this model's."""
        is_gpu = self.device.type == "cuda"
        return torch.cuda.device(self.device) if is_gpu else nullcontext()

    def broadcast(self, tensor: Tensor) -> None:
        """Overwrites it with that of the group's first process."""
        dist.broadcast(tensor, src=self.rank(0), group=self.group)

    def mean_(self, tensor: Tensor) -> None:
        """Overwrites it with the mean over all of them."""
        dist.all_reduce(tensor, group=self.group)
        tensor /= self.size


def processes_of(layers: list[SparseLayer]) -> Processes | None:
    """Those that train these layers together; None: this process trains them alone, or nobody has
    told of others.

    Raises ValueError that names a layer in torch's own DistributedDataParallel, and for layers of
    several process groups.
    """
    holders = parallel_of(layer.weight_values for layer in layers if _is_held(layer))
    for ddp in holders:
        if not hasattr(ddp, FOLLOWS):
            own = {id(parameter) for parameter in ddp.parameters()}
            name = next(x.name for x in layers if _is_held(x) and id(x.weight_values) in own)
            raise ValueError(
                f"layer {name!r} is inside a torch.nn.parallel.DistributedDataParallel, which "
                "would no longer average its gradients after a rewire, and whose processes could "
                "rewire differently; wrap the model in "
                "dsr_kernels.distributed.DistributedDataParallel instead, which takes the same "
                "arguments"
            )
    groups: list[Any] = [ddp.process_group for ddp in holders]
    if not groups:
        return None
    if any(group is not groups[0] for group in groups[1:]):
        raise ValueError(
            "model: expected all sparse layers of a rewirer in one process group, got "
            "DistributedDataParallels of several; give each a rewirer of its own"
        )
    return Processes(groups[0], layers[0].weight_values.device)


def _is_held(layer: SparseLayer) -> bool:
    return "weight_values" in layer.module._parameters
