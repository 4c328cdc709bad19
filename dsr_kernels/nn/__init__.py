"""Sparse layers, as torch.nn: SparseConv2d for nn.Conv2d, SparseLinear for nn.Linear."""

from dsr_kernels.nn.layers import SparseConv2d, SparseLinear, named_sparse_modules
from dsr_kernels.nn.module import SparseModule

__all__ = ["SparseConv2d", "SparseLinear", "SparseModule", "named_sparse_modules"]
