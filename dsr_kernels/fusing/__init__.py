"""fuse and unfuse: batch norm, ReLU and additions run inside the convolutions of a model."""

from dsr_kernels.fusing.fuse import fuse, unfuse
from dsr_kernels.fusing.report import FuseReport

__all__ = ["FuseReport", "fuse", "unfuse"]
