"""The operations as torch knows them: schemas and checks, derivatives, meaning."""

from dsr_kernels.ops import dispatcher as _dispatcher  # noqa: F401  registers them with torch
from dsr_kernels.ops.fused import dispatcher as _fused  # noqa: F401  these, too
from dsr_kernels.ops.fused import elementwise_dispatcher as _elementwise  # noqa: F401
