"""Subnormal numbers are zero to the CPU's kernels, as docs/limits.md says, and to nobody else."""

from __future__ import annotations

import platform

import pytest
import torch

from dsr_kernels.nn import SparseLinear


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are x86's")
@pytest.mark.parametrize(("x", "weight"), [(1e-40, 1.0), (1.0, 1e-40), (1e-20, 1e-20)])
def test_subnormals_are_flushed_inside_kernels_only(x: float, weight: float) -> None:
    layer = SparseLinear(8, 8, bias=False, sparsity=0.0)
    with torch.no_grad():
        layer.weight_values.fill_(weight)
        assert not layer(torch.full((4, 8), x)).any()
    assert (torch.full((4,), 1e-40) * 1.0).all()  # the caller's mode is as it was
