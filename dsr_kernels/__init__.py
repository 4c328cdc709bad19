"""Truly sparse training for PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsr_kernels import nn  # noqa: F401 (not in __all__: `import *` would hide torch's)
from dsr_kernels.convert import densify, sparsify
from dsr_kernels.distribution import layer_nnz
from dsr_kernels.environment import show_config
from dsr_kernels.explain import Explanation, explain
from dsr_kernels.fusing import FuseReport, fuse, unfuse
from dsr_kernels.nn import (
    SparseConv1d,
    SparseConv2d,
    SparseLinear,
    SparseModule,
    fit_to,
    named_sparse_modules,
)
from dsr_kernels.summary import summary
from dsr_kernels.topology import Topology

if TYPE_CHECKING:
    from dsr_kernels import models, rewiring

__all__ = [
    "Explanation",
    "FuseReport",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SparseModule",
    "Topology",
    "densify",
    "explain",
    "fit_to",
    "fuse",
    "layer_nnz",
    "models",
    "named_sparse_modules",
    "rewiring",
    "show_config",
    "sparsify",
    "summary",
    "unfuse",
]


LAZY = ("models", "rewiring")

if not TYPE_CHECKING:  # a type checker would take any name for one of these

    def __getattr__(name: str) -> Any:
        """dsr_kernels.models and dsr_kernels.rewiring, imported when they are first asked for."""
        if name in LAZY:
            from importlib import import_module

            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})
