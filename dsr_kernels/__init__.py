"""Truly sparse training for PyTorch.

``import dsr_kernels`` imports nothing else, not even torch: what has one of the names below is
loaded when the name is first asked for. ``import dsr_kernels.nn`` makes the ops known to torch, for
programs that load exported models and ask for no name.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what HOMES and MODULES say, for type checkers and editors
    from dsr_kernels import distributed, models, nn, rewiring  # noqa: F401 (nn is public, too)
    from dsr_kernels.convert import densify
    from dsr_kernels.convert.sparsify import sparsify
    from dsr_kernels.distribution import layer_nnz
    from dsr_kernels.environment import show_config
    from dsr_kernels.explain import Explanation
    from dsr_kernels.explain.explain import explain
    from dsr_kernels.fusing.fuse import fuse, unfuse
    from dsr_kernels.fusing.report import FuseReport
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

    __version__: str

__all__ = [  # without nn: `import *` would hide torch's
    "Explanation",
    "FuseReport",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SparseModule",
    "Topology",
    "densify",
    "distributed",
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

MODULES = ("distributed", "models", "nn", "rewiring")
HOMES = {  # the modules that other names are from
    "Explanation": "explain",
    "FuseReport": "fusing.report",
    "SparseConv1d": "nn",
    "SparseConv2d": "nn",
    "SparseLinear": "nn",
    "SparseModule": "nn",
    "Topology": "topology",
    "densify": "convert",
    "explain": "explain.explain",
    "fit_to": "nn",
    "fuse": "fusing.fuse",
    "layer_nnz": "distribution",
    "named_sparse_modules": "nn",
    "show_config": "environment",
    "sparsify": "convert.sparsify",
    "summary": "summary",
    "unfuse": "fusing.fuse",
}


class _Package(ModuleType):
    """This module's class. It keeps the functions that are called like the modules they are in."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Python puts a submodule that it has imported here, so dsr_kernels.explain would be one
        # thing or the other, by what happened to be imported.
        if isinstance(value, ModuleType) and name in HOMES:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if not TYPE_CHECKING:  # a type checker would take any name for one of these

    def __getattr__(name: str) -> Any:
        """What has a public name, imported when it is first asked for."""
        if name in MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name in HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
            globals()[name] = value  # the next time it is found without this function
            return value
        if name == "__version__":
            return importlib.import_module(f"{__name__}.version").version()
        # A module without a public name, as `import dsr_kernels.nn` would leave some of them here.
        if not name.startswith("__") and importlib.util.find_spec(f"{__name__}.{name}"):
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES, *HOMES, "__version__"})
