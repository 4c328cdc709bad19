"""Tensors that native code reads by itself: what they look like, where they lie, and without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.nn_cases import layer
from torch import Tensor

from dsr_kernels import SparseLinear
from dsr_kernels.backends import patterns, tensors
from dsr_kernels.backends.calls import look
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.tensors import ComparedLook

LOOKS = [ComparedLook, *([_C.Look] if tensors.IS_NATIVE else [])]
native_only = pytest.mark.skipif(not tensors.IS_NATIVE, reason="torch publishes no exchange API")


def test_this_torch_is_read_natively() -> None:
    published = hasattr(Tensor, "__dlpack_c_exchange_api__")
    assert published == tensors.IS_NATIVE


@pytest.mark.parametrize("look_of", LOOKS)
def test_a_look_is_of_dtypes_sizes_and_strides(look_of: Callable[..., tensors.Look]) -> None:
    x = torch.zeros(2, 3, 4, 5)
    seen = look_of(x, None, x[0, 0])
    fitting = torch.ones(2, 3, 4, 5, requires_grad=True), None, torch.ones(7, 5)[3:]
    assert seen.fits(*fitting)
    others = (
        torch.zeros(2, 3, 4, 5, dtype=torch.float64),
        torch.zeros(2, 3, 4, 5, dtype=torch.int32),
        torch.zeros(2, 3, 5, 4),
        torch.zeros(2, 3, 20),
        x.to(memory_format=torch.channels_last),
        x.to("meta"),
        None,
    )
    for other in others:
        assert not seen.fits(other, *fitting[1:])
    assert not seen.fits(x, x, x[0, 0])
    assert not seen.fits(x, None)
    assert not seen.fits(x, None, x[0, 0], None)
    assert not seen.fits(torch.eye(3).to_sparse(), None, x[0, 0])


@native_only
def test_what_no_memory_has_is_refused() -> None:
    with pytest.raises(TypeError, match="Look"):
        _C.Look(torch.eye(3).to_sparse())
    with pytest.raises(TypeError):
        _C.Look(3)
    conv, x = layer(3, 4, 1, bias=False), torch.randn(1, 3, 2, 2)
    out = conv(x)
    key = look("forward", conv_shape_of(conv), x)
    found = patterns.patterns.known(conv.crow_indices, conv.col_indices)
    call = patterns.patterns.call(found, key, x, conv.weight_values, None)
    workspace = torch.empty(call.workspace, dtype=torch.uint8)
    freed = x.clone()
    freed.untyped_storage().resize_(0)
    for wrong in (freed, torch.empty(1, 3, 2, 2, device="meta"), "x", x.numpy()):
        with pytest.raises(TypeError, match="memory of its own"):
            call.run(out, wrong, conv.weight_values, None, workspace)


def conv_shape_of(conv: torch.nn.Module):
    from dsr_kernels.backends.conv_shape import conv_shape

    return conv_shape(conv.weight_shape, conv.stride, conv._sides, conv.dilation, conv.groups)


def test_a_foreign_capsule_is_not_believed() -> None:
    import numpy as np

    class Holder:
        """NumPy's capsule is of another name."""

        capsule = np.zeros(3).__array_struct__

    assert not _C.use_exchange_api(Holder.capsule)


def results(module: torch.nn.Module, x: Tensor) -> list[Tensor]:
    leaf = x.detach().requires_grad_()
    y = module(leaf)
    grads = torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])
    frozen = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
    return [y, *grads, *frozen]


@pytest.mark.parametrize("module, size", [(0, (2, 5, 7, 8)), (1, (3, 6))], ids=["conv", "linear"])
def test_an_older_torch_computes_the_same(
    module: int, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses and looks by Python's means."""
    made = (layer(5, 6, 3, padding=1), SparseLinear(6, 9, sparsity=0.5))[module]
    x = torch.randn(size)
    expected = [results(made, x) for _ in range(2)][1]
    patterns.patterns.clear()
    with monkeypatch.context() as patch:
        patch.setattr(tensors, "IS_NATIVE", False)
        patch.setattr(patterns, "look_of", ComparedLook)
        again = [results(made, x) for _ in range(2)][1]
        calls = patterns.patterns.known(made.crow_indices, made.col_indices).calls
        kept = [kept for each in calls.values() for kept in each]
        assert kept
        assert all(isinstance(each.look, ComparedLook) for each in kept)
    patterns.patterns.clear()
    assert all(map(torch.equal, expected, again))
