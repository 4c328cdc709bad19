"""Truly sparse training for PyTorch."""

from ._native import show_config
from .convert import densify, sparsify
from .distribution import layer_nnz
from .explain import Explanation, explain
from .nn import SparseConv2d, SparseLinear, SparseModule, named_sparse_modules
from .summary import summary
from .topology import Topology

__all__ = [
    "Explanation",
    "SparseConv2d",
    "SparseLinear",
    "SparseModule",
    "Topology",
    "densify",
    "explain",
    "layer_nnz",
    "named_sparse_modules",
    "show_config",
    "sparsify",
    "summary",
]
