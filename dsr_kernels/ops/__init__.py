"""The operations as torch knows them: schemas and checks, derivatives, meaning."""

from dsr_kernels.ops import dispatcher as _dispatcher  # noqa: F401  registers them with torch
