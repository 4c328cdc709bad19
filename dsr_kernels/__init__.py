"""Truly sparse training for PyTorch.

``import dsr_kernels`` imports nothing else, not even torch: what has one of the names below is
loaded when the name is first asked for. ``import dsr_kernels.nn`` makes the ops known to torch, for
programs that load exported models and ask for no name.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what HOMES and MODULES say, for type checkers and editors
    from dsr_kernels import cuda, distributed, models, nn, rewiring  # noqa: F401 (all are public)
    from dsr_kernels.convert import densify
    from dsr_kernels.convert.to_sparse import sparsify
    from dsr_kernels.distribution import layer_nnz
    from dsr_kernels.environment import show_config
    from dsr_kernels.explaining import Explanation
    from dsr_kernels.explaining.whole_model import explain
    from dsr_kernels.fusing.report import FuseReport
    from dsr_kernels.fusing.whole_model import fuse, unfuse
    from dsr_kernels.nn import (
        SparseConv1d,
        SparseConv2d,
        SparseLinear,
        SparseModule,
        fit_to,
        named_sparse_modules,
    )
    from dsr_kernels.summaries import summary
    from dsr_kernels.topology import Topology

    __version__: str

__all__ = [  # without nn and cuda: `import *` would hide torch's
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

MODULES = ("cuda", "distributed", "models", "nn", "rewiring")
HOMES = {  # the modules that other names are from; none is called like a name (tests hold it)
    "Explanation": "explaining",
    "FuseReport": "fusing.report",
    "SparseConv1d": "nn",
    "SparseConv2d": "nn",
    "SparseLinear": "nn",
    "SparseModule": "nn",
    "Topology": "topology",
    "densify": "convert",
    "explain": "explaining.whole_model",
    "fit_to": "nn",
    "fuse": "fusing.whole_model",
    "layer_nnz": "distribution",
    "named_sparse_modules": "nn",
    "show_config": "environment",
    "sparsify": "convert.to_sparse",
    "summary": "summaries",
    "unfuse": "fusing.whole_model",
}

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
