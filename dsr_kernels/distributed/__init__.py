"""Data-parallel training of sparse models, whose parameters change their sizes as they rewire.

    ddp = dsr_kernels.distributed.DistributedDataParallel(model)  # as torch's
    rewirer = RigL(ddp, optimizer)

docs/distributed.md says how it works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsr_kernels.distributed.data_parallel import DistributedDataParallel

if TYPE_CHECKING:
    from dsr_kernels.distributed.checkpoint import SparseLoadPlanner

__all__ = ["DistributedDataParallel", "SparseLoadPlanner"]

if not TYPE_CHECKING:  # a type checker would take any name for it

    def __getattr__(name: str) -> Any:
        """SparseLoadPlanner, imported when it is first asked for: torch's takes a second."""
        if name == "SparseLoadPlanner":
            from dsr_kernels.distributed import checkpoint

            return checkpoint.SparseLoadPlanner
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
