"""Truly sparse training for PyTorch."""

from dsr_kernels.convert import densify, sparsify
from dsr_kernels.distribution import layer_nnz
from dsr_kernels.environment import show_config
from dsr_kernels.explain import Explanation, explain
from dsr_kernels.nn import SparseConv2d, SparseLinear, SparseModule, named_sparse_modules
from dsr_kernels.summary import summary
from dsr_kernels.topology import Topology

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
