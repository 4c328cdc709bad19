"""Between one dense layer and its sparse twin: what carries over, and what is refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.backends.native import DTYPE_CODES
from dsr_kernels.choices import check_choice
from dsr_kernels.distribution import budget
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.ops.reference import at_pattern
from dsr_kernels.topology import Topology

DenseLayer = nn.Conv2d | nn.Linear
METHODS = ("magnitude", "random", "kernels")


def why_not(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """Why `module` cannot become the sparse twin of `kind`, nn.Conv2d or nn.Linear; None if it can.

    A sparse layer computes what `kind` computes from the same arguments, nothing more: a module
    that does something else (own forward, parametrized or pruned weight, hooks) would lose it.
    """
    if not isinstance(module, kind):
        return f"expected an nn.{kind.__name__}, got {type(module).__name__}"
    if nn.utils.parametrize.is_parametrized(module) or "weight" not in module._parameters:
        return "its weight is parametrized, normalized or pruned; make that permanent first"
    if type(module) is not kind:
        return f"{type(module).__name__} is a subclass of nn.{kind.__name__} with a life of its own"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name) for name in hooks):
        return "it has hooks, which would be lost; remove them first"
    if module.weight.dtype not in DTYPE_CODES:
        return f"its weight is {module.weight.dtype}; sparse values are float32 or float64"
    return None


def check_dense(module: nn.Module, kind: type[nn.Module]) -> None:
    reason = why_not(module, kind)
    if reason is not None:
        raise TypeError(f"from_dense: cannot convert {type(module).__name__}: {reason}")


def choose_topology(
    weight: Tensor,
    sparsity: float | None,
    nnz: int | None,
    mask: Tensor | None,
    method: str,
    generator: torch.Generator | None,
) -> Topology:
    """The pattern from_dense keeps: a mask's, or `nnz` entries by magnitude or at random, or as
    many whole kernels at random as hold no more than `nnz`.
    """
    given = [n for n, v in (("sparsity", sparsity), ("nnz", nnz), ("mask", mask)) if v is not None]
    if len(given) != 1:
        raise ValueError(
            "from_dense: expected exactly one of sparsity, nnz and mask, "
            f"got {', '.join(given) or 'none of them'}"
        )
    check_choice(method, "method", METHODS)
    if mask is not None:
        if mask.shape != weight.shape:
            raise ValueError(
                f"mask: expected the weight's shape {tuple(weight.shape)}, got {tuple(mask.shape)}"
            )
        return Topology.from_mask(mask).to(weight.device)
    if sparsity is not None:
        nnz = budget(weight.numel(), sparsity)
    assert nnz is not None  # one of the three is given
    if method == "random":
        return Topology.random(weight.shape, nnz, generator=generator, device=weight.device)
    if method == "kernels":
        return Topology.random_kernels(weight.shape, nnz, generator=generator, device=weight.device)
    return Topology.from_dense_magnitude(weight, nnz)


def fill_sparse(sparse: SparseModule, dense: DenseLayer, topology: Topology) -> None:
    """Give a sparse layer built on the meta device the dense one's weights at `topology`."""
    crow, col = topology.crow_indices, topology.col_indices
    values = at_pattern(dense.weight.detach(), crow, col)
    sparse.crow_indices, sparse.col_indices = crow, col
    sparse.weight_values = nn.Parameter(values[:, None], requires_grad=dense.weight.requires_grad)
    _copy_rest(sparse, dense)
    sparse._pattern_pending = False


def fill_dense(dense: DenseLayer, sparse: SparseModule) -> None:
    """Give a dense layer built on the meta device the sparse one's weights."""
    weight = sparse.to_dense().detach()
    dense.weight = nn.Parameter(weight, requires_grad=sparse.weight_values.requires_grad)
    _copy_rest(dense, sparse)


def _copy_rest(target: DenseLayer | SparseModule, source: DenseLayer | SparseModule) -> None:
    if source.bias is not None:
        bias = source.bias.detach().clone()
        target.bias = nn.Parameter(bias, requires_grad=source.bias.requires_grad)
    target.train(source.training)


def conv_arguments(conv: Any) -> dict[str, Any]:
    """Every argument nn.Conv2d and SparseConv2d share, read off either; built on meta, unfilled."""
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "padding_mode": conv.padding_mode,
        "device": "meta",
    }


def linear_arguments(linear: Any) -> dict[str, Any]:
    return {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
        "device": "meta",
    }
