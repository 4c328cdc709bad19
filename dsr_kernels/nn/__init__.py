"""Sparse layers, as torch.nn: SparseConv1d, SparseConv2d and SparseLinear."""

from dsr_kernels.nn.fit import fit_to
from dsr_kernels.nn.layers import SparseConv1d, SparseConv2d, SparseLinear, named_sparse_modules
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.nn.pattern_owner import adopt_patterns

__all__ = [
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SparseModule",
    "adopt_patterns",
    "fit_to",
    "named_sparse_modules",
]
