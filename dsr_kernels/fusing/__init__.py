"""fuse and unfuse: batch norm, ReLU and additions run inside the convolutions of a model."""

from dsr_kernels.fusing.report import FuseReport
from dsr_kernels.fusing.whole_model import fuse, unfuse

__all__ = ["FuseReport", "fuse", "unfuse"]
