"""Whole models: sparsify makes their convolutions and linear layers sparse, densify undoes it."""

from dsr_kernels.convert.choice import why_dense
from dsr_kernels.convert.exchange import densify
from dsr_kernels.convert.to_sparse import sparsify

__all__ = ["densify", "sparsify", "why_dense"]
