"""From a dense layer to its sparse twin and back: what carries over, and what is refused."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dsr_kernels.backends.native import DTYPE_CODES
from dsr_kernels.choices import check_choice
from dsr_kernels.distribution import budget
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.ops.reference import at_pattern
from dsr_kernels.topology import Topology

DenseLayer = nn.Conv1d | nn.Conv2d | nn.Linear
CONVOLUTION = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)
# What a dense layer and its sparse twin have in common, but for weight and bias.
ARGUMENTS: dict[type[DenseLayer], tuple[str, ...]] = {
    nn.Conv1d: CONVOLUTION,
    nn.Conv2d: CONVOLUTION,
    nn.Linear: ("in_features", "out_features"),
}
S = TypeVar("S", bound=SparseModule)
D = TypeVar("D", nn.Conv1d, nn.Conv2d, nn.Linear)

KEEP = ("magnitude", "random", "kernels")  # which weights of a dense layer stay


def why_not(module: nn.Module, kind: type[DenseLayer]) -> str | None:
    """Why `module` cannot become the sparse twin of `kind`, such as nn.Conv2d; None if it can.

    A sparse layer computes just what `kind` computes from the same arguments. A module that does
    more (a forward of its own, a parametrized or pruned weight, hooks) would lose it.
    """
    if not isinstance(module, kind):
        return f"expected an nn.{kind.__name__}, got {type(module).__name__}"
    if nn.utils.parametrize.is_parametrized(module) or "weight" not in module._parameters:
        return "its weight is parametrized, normalized or pruned; make that permanent first"
    if type(module) is not kind:
        name = type(module).__name__
        return f"{name} is a subclass of nn.{kind.__name__} and may compute something else"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name) for name in hooks):
        return "it has hooks, which would be lost; remove them first"
    assert isinstance(module, DenseLayer)
    if module.weight.dtype not in DTYPE_CODES:
        return f"its weight is {module.weight.dtype}; sparse values are float32 or float64"
    return None


def choose_topology(
    dense: DenseLayer,
    kind: type[DenseLayer],
    sparsity: float | None,
    nnz: int | None,
    mask: Tensor | None,
    keep: str,
    generator: torch.Generator | None,
) -> Topology:
    """The pattern from_dense gives the sparse twin of `dense`, an instance of `kind`.

    It is the mask's, or that of `nnz` weights by magnitude or at random, or of as many whole
    kernels at random as hold no more than `nnz` weights. Raises TypeError where `dense` cannot be
    converted.
    """
    reason = why_not(dense, kind)
    if reason is not None:
        raise TypeError(f"from_dense: cannot convert {type(dense).__name__}: {reason}")
    given = [n for n, v in (("sparsity", sparsity), ("nnz", nnz), ("mask", mask)) if v is not None]
    if len(given) != 1:
        raise ValueError(
            "from_dense: expected exactly one of sparsity, nnz and mask, "
            f"got {', '.join(given) or 'none of them'}"
        )
    check_choice(keep, "keep", KEEP)
    weight = dense.weight
    if mask is not None:
        if mask.shape != weight.shape:
            raise ValueError(
                f"mask: expected the weight's shape {tuple(weight.shape)}, got {tuple(mask.shape)}"
            )
        return Topology.from_mask(mask).to(weight.device)
    if sparsity is not None:
        nnz = budget(weight.numel(), sparsity)
    assert nnz is not None  # one of the three is given
    if keep == "random":
        return Topology.random(weight.shape, nnz, generator=generator, device=weight.device)
    if keep == "kernels":
        return Topology.random_kernels(weight.shape, nnz, generator=generator, device=weight.device)
    return Topology.from_dense_magnitude(weight, nnz)


def sparse_twin(sparse_class: type[S], dense: DenseLayer, topology: Topology) -> S:
    """A `sparse_class` with the arguments of `dense` and its weights at `topology`."""
    arguments = _arguments(dense, type(dense))
    sparse = sparse_class(**arguments, dtype=dense.weight.dtype, nnz=topology.nnz)
    crow, col = topology.crow_indices, topology.col_indices
    values = at_pattern(dense.weight.detach(), crow, col)
    sparse.crow_indices, sparse.col_indices = crow, col
    sparse.weight_values = nn.Parameter(values[:, None], requires_grad=dense.weight.requires_grad)
    _copy_rest(sparse, dense)
    sparse._pattern_pending = False
    return sparse


def dense_twin(dense_class: type[D], sparse: SparseModule) -> D:
    """A `dense_class` with the arguments of `sparse`, that computes the same."""
    dense = dense_class(**_arguments(sparse, dense_class), dtype=sparse.weight_values.dtype)
    weight = sparse.to_dense().detach()
    dense.weight = nn.Parameter(weight, requires_grad=sparse.weight_values.requires_grad)
    _copy_rest(dense, sparse)
    return dense


def _arguments(layer: DenseLayer | SparseModule, dense_class: type[DenseLayer]) -> dict[str, Any]:
    """The arguments that both twins take, read off either; for a layer on meta, to be filled."""
    arguments = {name: getattr(layer, name) for name in ARGUMENTS[dense_class]}
    return {**arguments, "bias": layer.bias is not None, "device": "meta"}


def _copy_rest(target: DenseLayer | SparseModule, source: DenseLayer | SparseModule) -> None:
    if source.bias is not None:
        bias = source.bias.detach().clone()
        target.bias = nn.Parameter(bias, requires_grad=source.bias.requires_grad)
    target.train(source.training)
