"""From a dense layer to its sparse twin and back: what carries over, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dsr_kernels.backends.native import DTYPE_CODES
from dsr_kernels.choices import check_choice
from dsr_kernels.distribution import budget
from dsr_kernels.nn.carry_over import carry_over, same, why_code, why_shape
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.ops.reference import at_pattern
from dsr_kernels.topology import Topology, check_block_size

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


def why_not(
    module: nn.Module, kind: type[DenseLayer], sparse_class: type[SparseModule] | None = None
) -> str | None:
    """Why `module` cannot become the sparse twin of `kind`, such as nn.Conv2d; None if it can.

    carry_over.py has the rule: data that hangs on it is carried over, code is refused. Names that a
    `sparse_class` needs for itself cannot be carried over either.
    """
    if not isinstance(module, kind):
        return f"expected an nn.{kind.__name__}, got {type(module).__name__}"
    if reason := why_code(module, kind, "weight") or why_type(module.weight):
        return reason
    return _why_misfit(module, kind, kind, sparse_class or kind)


def why_type(weight: Tensor) -> str | None:
    """Why a dense weight of this type cannot become sparse; None if it can."""
    if weight.dtype in DTYPE_CODES:
        return None
    return f"its weight is {weight.dtype}; sparse values are float32 or float64"


def why_not_dense(sparse: SparseModule, kind: type[DenseLayer]) -> str | None:
    """Why `sparse` cannot become the `kind` of torch.nn that computes the same; None if it can."""
    # A subclass with a dense_module of its own knows its twin.
    knowing = next(c for c in type(sparse).__mro__ if "dense_module" in vars(c))
    if reason := why_code(sparse, knowing, "weight_values"):
        return reason
    if sparse._pattern_pending and not sparse.weight_values.is_meta:
        return "it has no pattern yet; load a checkpoint or call reset_parameters first"
    return _why_misfit(sparse, kind, plain_class(sparse), kind)


def plain_class(layer: nn.Module) -> type[nn.Module]:
    """The class of torch.nn or of this package that `layer` is, or that its class derives from."""
    if not isinstance(layer, SparseModule):
        return type(layer)
    return [c for c in type(layer).__mro__ if "dense_module" in vars(c)][-2]


def choose_topology(
    dense: DenseLayer,
    kind: type[DenseLayer],
    sparsity: float | None,
    nnz: int | None,
    mask: Tensor | None,
    keep: str,
    generator: torch.Generator | None,
    block_size: int = 1,
) -> Topology:
    """The pattern from_dense gives the sparse twin of `dense`, an instance of `kind`.

    It is the mask's, or that of `nnz` weights by magnitude or at random, or of as many whole
    kernels at random as hold no more than `nnz` weights. Raises TypeError where `dense` cannot be
    converted.
    """
    if reason := why_not(dense, kind):
        raise TypeError(f"from_dense: cannot convert {type(dense).__name__}: {reason}")
    given = [n for n, v in (("sparsity", sparsity), ("nnz", nnz), ("mask", mask)) if v is not None]
    if len(given) != 1:
        raise ValueError(
            "from_dense: expected exactly one of sparsity, nnz and mask, "
            f"got {', '.join(given) or 'none of them'}"
        )
    check_choice(keep, "keep", KEEP)
    weight = dense.weight
    check_block_size(weight.shape, block_size, getattr(dense, "groups", 1))
    if weight.is_meta and (mask is not None or keep != "random"):
        raise ValueError(
            f"{'keep' if mask is None else 'mask'}: a layer on meta has no weights to choose from "
            "and cannot hold a pattern; pass keep='random', which leaves the pattern to a "
            "checkpoint or to reset_parameters, or convert the layer once it has its weights"
        )
    if mask is not None:
        if mask.shape != weight.shape:
            raise ValueError(
                f"mask: expected the weight's shape {tuple(weight.shape)}, got {tuple(mask.shape)}"
            )
        return Topology.from_mask(mask, block_size).to(weight.device)
    if sparsity is not None:
        nnz = budget(weight.numel(), sparsity, block_size)
    assert nnz is not None  # one of the three is given
    if keep == "magnitude":
        return Topology.from_dense_magnitude(weight, nnz, block_size)
    draw = Topology.random if keep == "random" else Topology.random_kernels
    options: dict[str, Any] = {
        "block_size": block_size,
        "generator": generator,
        "device": weight.device,
    }
    return draw(weight.shape, nnz, **options)


def sparse_twin(sparse_class: type[S], dense: DenseLayer, topology: Topology) -> S:
    """A `sparse_class` with the arguments of `dense` and its weights at `topology`.

    What hangs on `dense` goes along. On meta the twin has no pattern yet, only its size.
    """
    if reason := _why_misfit(dense, type(dense), type(dense), sparse_class):
        raise TypeError(f"from_dense: cannot convert {type(dense).__name__}: {reason}")
    weight = dense.weight.detach()
    arguments = _arguments(dense, type(dense)) | {"nnz": topology.nnz}
    arguments |= {"block_size": topology.block_size, "dtype": weight.dtype}
    sparse = sparse_class(**arguments)
    crow, col = topology.crow_indices, topology.col_indices
    if weight.is_meta:
        values = weight.new_empty(topology.blocks, topology.block_size)
    else:
        values = at_pattern(weight, crow, col)
    sparse.crow_indices, sparse.col_indices = crow, col
    sparse.weight_values = nn.Parameter(values, requires_grad=dense.weight.requires_grad)
    sparse._pattern_pending = weight.is_meta
    if not weight.is_meta:
        sparse._set_dense_shape()
        sparse._own()
    _copy_rest(dense, sparse)
    return sparse


def dense_twin(dense_class: type[D], sparse: SparseModule) -> D:
    """A `dense_class` with the arguments of `sparse`, that computes the same.

    Raises TypeError where that cannot be, see carry_over.py. On meta it has no weights, only their
    shape.
    """
    if reason := why_not_dense(sparse, dense_class):
        raise TypeError(f"dense_module: cannot convert {type(sparse).__name__}: {reason}")
    values = sparse.weight_values
    dense = dense_class(**_arguments(sparse, dense_class), dtype=values.dtype)
    if not values.is_meta:
        weight = sparse.to_dense().detach()
        dense.weight = nn.Parameter(weight)
    dense.weight.requires_grad_(values.requires_grad)
    _copy_rest(sparse, dense)
    return dense


def hang(source: nn.Module, twin: nn.Module, take: Callable[[Any], Any]) -> None:
    """Gives `twin` the bias of `source` and what hangs on it, `take` making the twin's of each."""
    dense = source if isinstance(source, DenseLayer) else twin
    assert isinstance(dense, DenseLayer)
    plain = _plain(source, type(dense), plain_class(source))
    twin._parameters["bias"] = take(source._parameters["bias"])
    carry_over(source, plain, twin, take)


def _arguments(layer: nn.Module, dense_class: type[DenseLayer]) -> dict[str, Any]:
    """The arguments that both twins take, read off either; for a layer on meta, to be filled."""
    arguments = {name: getattr(layer, name) for name in ARGUMENTS[dense_class]}
    return {**arguments, "bias": layer.bias is not None, "device": "meta"}


def _plain(layer: nn.Module, dense_class: type[DenseLayer], kind: type[nn.Module]) -> nn.Module:
    """A new `kind` on meta with the arguments of `layer`."""
    size = {}
    if issubclass(kind, SparseModule):
        block = getattr(layer, "block_size", 1)
        size = {"nnz": block, "block_size": block}
    return kind(**_arguments(layer, dense_class), **size)


def _why_misfit(
    layer: nn.Module,
    dense_class: type[DenseLayer],
    kind: type[nn.Module],
    twin_class: type[nn.Module],
) -> str | None:
    """Why `layer`, a `kind`, is not what its arguments say, or not what a `twin_class` can be."""
    try:
        plain, twin = (_plain(layer, dense_class, made) for made in (kind, twin_class))
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        return f"its attributes are not the arguments of a {kind.__name__}: {error}"
    return why_shape(layer, plain, twin)


def _copy_rest(source: DenseLayer | SparseModule, twin: DenseLayer | SparseModule) -> None:
    """A bias of the twin's own; the rest, which both share from now on."""
    hang(source, twin, same)
    if source.bias is not None:
        twin.bias = nn.Parameter(source.bias.detach().clone(), source.bias.requires_grad)
        vars(twin.bias).update(vars(source.bias))
