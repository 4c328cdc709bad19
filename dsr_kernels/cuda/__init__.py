"""Training steps from a CUDA graph: the GPU no longer waits for Python. See docs/cuda.md.

This imports and runs where there is no GPU, too: all steps are eager there.
"""

from __future__ import annotations

from dsr_kernels.cuda.graphed_step import GraphedStep

__all__ = ["GraphedStep"]
