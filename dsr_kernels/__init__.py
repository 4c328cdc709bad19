"""Truly sparse training for PyTorch."""

from .nn import SparseConv2d, SparseLinear, SparseModule, named_sparse_modules
from .topology import Topology, layer_nnz

__all__ = [
    "SparseConv2d",
    "SparseLinear",
    "SparseModule",
    "Topology",
    "layer_nnz",
    "named_sparse_modules",
]
