"""Sparse layers, as torch.nn: SparseConv1d, SparseConv2d and SparseLinear."""

from dsr_kernels.nn.layers import SparseConv1d, SparseConv2d, SparseLinear, named_sparse_modules
from dsr_kernels.nn.module import SparseModule

__all__ = ["SparseConv1d", "SparseConv2d", "SparseLinear", "SparseModule", "named_sparse_modules"]
