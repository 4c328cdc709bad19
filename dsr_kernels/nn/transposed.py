"""SparseTransposed: a linear layer whose dense twin keeps its weight as [inputs, outputs].

That is `Conv1D` of transformers, in GPT-2 and its kin. It is recognized by its name and what it
has, so that transformers need not be there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.nn.carry_over import carry_over, same, why_code, why_shape
from dsr_kernels.nn.from_dense import choose_topology, sparse_twin, why_not_dense, why_type
from dsr_kernels.nn.layers import SparseLinear


def is_transposed(layer: nn.Module) -> bool:
    """Whether `layer` is transformers' Conv1D, or a subclass of it."""
    return any(
        kind.__name__ == "Conv1D" and kind.__module__.split(".")[0] == "transformers"
        for kind in type(layer).__mro__
    )


def weight_shape(layer: nn.Module) -> torch.Size:
    """The shape of a dense layer's weight, outputs first."""
    weight = layer._parameters["weight"]
    assert weight is not None
    return torch.Size(reversed(weight.shape)) if is_transposed(layer) else weight.shape


def why_not_transposed(layer: nn.Module) -> str | None:
    """Why a Conv1D cannot become sparse; None if it can. See carry_over.py for the rule."""
    kind = next(kind for kind in type(layer).__mro__ if kind.__name__ == "Conv1D")
    if reason := why_code(layer, kind, "weight"):
        return reason
    weight = layer._parameters["weight"]
    assert weight is not None
    if reason := why_type(weight):
        return reason
    if weight.dim() != 2 or layer._parameters["bias"] is None:
        return "it is not what Conv1D of transformers is"
    plain = _plain(layer)
    for name in ("nf", "nx"):
        if vars(layer).get(name) != vars(plain).get(name):
            return f"its {name} is {vars(layer).get(name)}, its weight's is {vars(plain)[name]}"
    inputs, outputs = weight.shape
    try:
        twin = SparseTransposed(inputs, outputs, nnz=1, device="meta")
    except ValueError as error:
        return str(error)
    twin.dense_class = kind
    return why_shape(layer, plain, twin)


def why_not_conv1d(sparse: SparseTransposed) -> str | None:
    """Why a layer cannot become the Conv1D that it was made of; None if it can."""
    if "dense_class" not in vars(sparse):
        return "it was not made of a Conv1D"
    if reason := why_not_dense(sparse, nn.Linear):
        return reason
    return why_shape(sparse, _plain(sparse), _conv1d(sparse))


class SparseTransposed(SparseLinear):
    """SparseLinear, made of transformers' Conv1D, that becomes one again.

    A dense `weight` of a checkpoint is [inputs, outputs], as Conv1D's.
    """

    dense_class: type[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        """What Conv1D takes has this name."""
        return super().forward(x)

    @classmethod
    def from_dense(
        cls,
        linear: Any,
        sparsity: float | None = None,
        *,
        nnz: int | None = None,
        mask: Tensor | None = None,
        keep: str = "magnitude",
        block_size: int = 1,
        generator: torch.Generator | None = None,
    ) -> SparseTransposed:
        """The sparse twin of a Conv1D; see SparseConv2d.from_dense. `mask` is [outputs, inputs]."""
        if reason := why_not_transposed(linear):
            raise TypeError(f"from_dense: cannot convert {type(linear).__name__}: {reason}")
        inputs, outputs = linear.weight.shape
        like = nn.Linear(inputs, outputs, device="meta", dtype=linear.weight.dtype)
        weight = linear.weight.detach().t()
        like.weight = nn.Parameter(weight, linear.weight.requires_grad)
        like.bias = linear.bias
        which = sparsity, nnz, mask, keep, generator, block_size
        sparse = sparse_twin(cls, like, choose_topology(like, nn.Linear, *which))
        sparse.dense_class = type(linear)
        carry_over(linear, _plain(linear), sparse)
        return sparse

    def dense_module(self) -> Any:
        """The Conv1D that computes the same: O(numel) memory. Raises TypeError as densify does."""
        if reason := why_not_conv1d(self):
            raise TypeError(f"dense_module: cannot convert {type(self).__name__}: {reason}")
        values, bias = self.weight_values, self.bias
        assert bias is not None
        dense: Any = _conv1d(self)
        weight = values.new_empty(self.in_features, self.out_features)
        if not values.is_meta:
            weight = self.to_dense().detach().t().contiguous()
        dense.weight = nn.Parameter(weight, values.requires_grad)
        hang(self, dense, same)
        dense.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
        vars(dense.bias).update(vars(bias))
        return dense

    @property
    def nf(self) -> int:
        """Conv1D's name for its outputs."""
        return self.out_features

    @property
    def nx(self) -> int:
        """Conv1D's name for its inputs."""
        return self.in_features

    def _fit_to(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        key = f"{prefix}weight"
        if isinstance(state_dict.get(key), Tensor):
            state_dict = {**state_dict, key: state_dict[key].t()}
        return super()._fit_to(state_dict, prefix, metadata)


def hang(source: nn.Module, twin: nn.Module, take: Callable[[Any], Any]) -> None:
    """Gives `twin` the bias of `source` and what hangs on it, `take` making the twin's of each."""
    twin._parameters["bias"] = take(source._parameters["bias"])
    carry_over(source, _plain(source), twin, take)


def _plain(layer: nn.Module) -> nn.Module:
    """A new layer of the class of `layer`, a Conv1D or what was made of one, on meta."""
    if isinstance(layer, SparseTransposed):
        size = {"nnz": layer.block_size, "block_size": layer.block_size}
        plain = SparseTransposed(layer.in_features, layer.out_features, device="meta", **size)  # type: ignore[arg-type]
        plain.dense_class = layer.dense_class
        return plain
    outputs, inputs = weight_shape(layer)
    with torch.device("meta"):  # so that no random number is drawn
        return type(layer)(outputs, inputs)


def _conv1d(sparse: SparseTransposed) -> nn.Module:
    """A Conv1D of that size, on meta."""
    with torch.device("meta"):
        return sparse.dense_class(sparse.out_features, sparse.in_features)
