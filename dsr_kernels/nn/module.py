"""SparseModule: what the sparse layers share. They hold only the non-zeros of their weight.

`weight_values` [blocks, block_size] is the nn.Parameter. `crow_indices` [O // block_size + 1] and
`col_indices` [blocks] (int32) are persistent buffers. So optimizers, state_dict, deepcopy, pickle
and `.to()` treat a sparse layer like any other. Values are float32 or float64. The indices stay
int32 under every `.to()`. With a block size of 1, the default, each non-zero has its own position.
They have two dimensions because many training scripts decay only parameters that have at least two.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dsr_kernels.backends.held import exchange
from dsr_kernels.backends.native import DTYPE_CODES
from dsr_kernels.backends.pattern import check_int32
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.distribution import budget
from dsr_kernels.nn import sharing
from dsr_kernels.nn.accumulators import refuse_held
from dsr_kernels.nn.changing import changing
from dsr_kernels.nn.compile import let_nnz_vary
from dsr_kernels.nn.leaf import mode_of, ordinary, why_fixed
from dsr_kernels.nn.normalized import refuse_normalized
from dsr_kernels.nn.one_node import is_tracing, refuse_constant
from dsr_kernels.nn.step_check import install
from dsr_kernels.nn.stored import StoredWeight
from dsr_kernels.ops import reference
from dsr_kernels.topology import Topology, check_block_size, check_pattern, check_shape

_TENSORS = ("weight_values", "bias", "crow_indices", "col_indices")


@functools.cache
def _are_overridden(kind: type) -> bool:
    """Whether a class has attributes of its own in the place of a layer's tensors."""
    return any(hasattr(kind, name) for name in _TENSORS)


class SparseModule(StoredWeight):
    """A layer whose weight of shape `weight_shape` is a sparse matrix (topology.py) of O rows."""

    def __init__(
        self,
        weight_shape: Sequence[int],
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        sparsity: float,
        nnz: int | None,
        generator: torch.Generator | None,
        block_size: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        let_nnz_vary()
        install()
        dtype = dtype or torch.get_default_dtype()
        if dtype not in DTYPE_CODES:
            raise TypeError(
                f"{type(self).__name__}: values must be float32 or float64, got dtype={dtype}; for "
                "lower precision keep float32 weights and use torch.autocast"
            )
        self.weight_shape = check_shape(weight_shape)
        check_block_size(self.weight_shape, block_size, groups)
        self.block_size = block_size
        if nnz is None:
            nnz = budget(math.prod(self.weight_shape), sparsity, block_size)
        topology = self._draw(nnz, device, generator)
        self.register_buffer("crow_indices", topology.crow_indices)
        self.register_buffer("col_indices", topology.col_indices)
        self._set_dense_shape()
        device = topology.col_indices.device
        empty = torch.empty(topology.blocks, block_size, device=device, dtype=dtype)
        self.weight_values = nn.Parameter(empty)
        biases = torch.empty(self.weight_shape[0], device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if biases is None else nn.Parameter(biases))
        # On the meta device there is no pattern yet: reset_parameters draws it.
        self._pattern_pending = self.weight_values.is_meta
        if not self._pattern_pending:
            self._own()
        sharing.join(self)
        self._draw_parameters(generator)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A layer that is unpickled may be the first of its process."""
        super().__setstate__(state)
        if "values" in self._parameters:
            raise RuntimeError(
                f"{type(self).__name__}: this pickle was made before the `values` [nnz] of sparse "
                "layers became `weight_values` [nnz, 1]; save the state_dict with the version of "
                "dsr_kernels that made it, and load that"
            )
        let_nnz_vary()
        install()

    def _draw(self, nnz: int, device: Any, generator: torch.Generator | None) -> Topology:
        options: dict[str, Any] = {"block_size": self.block_size, "generator": generator}
        return Topology.random(self.weight_shape, nnz, device=device, **options)

    # --- the weight ---

    @property
    def blocks(self) -> int:
        """Blocks held: with a block size of 1, non-zeros."""
        return self.col_indices.numel()

    @property
    def nnz(self) -> int:
        """Non-zeros: weights held."""
        return self.blocks * self.block_size

    @property
    def numel(self) -> int:
        """Elements of the dense weight this layer stands for."""
        return math.prod(self.weight_shape)

    @property
    def row_length(self) -> int:
        return math.prod(self.weight_shape[1:])

    @property
    def density(self) -> float:
        return self.nnz / self.numel

    @property
    def sparsity(self) -> float:
        return 1 - self.density

    @property
    def topology(self) -> Topology:
        """The present pattern; it shares the module's index tensors."""
        self._verify()
        pattern = self.crow_indices, self.col_indices
        return Topology(self.weight_shape, *pattern, self.block_size)

    def _size_repr(self) -> str:
        size = "" if self.block_size == 1 else f"block_size={self.block_size}, "
        return f"{size}nnz={self.nnz}, sparsity={self.sparsity:.4g}"

    def to_dense(self) -> Tensor:
        """The dense weight, differentiable in `weight_values`; takes O(numel) memory."""
        self._verify()
        pattern = self.crow_indices, self.col_indices
        return reference.to_dense(self.weight_values, *pattern, self.weight_shape)

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                f"{self.label()}: a {type(self).__name__} has no dense weight: use .weight_values "
                "[blocks, block_size], .topology or .to_dense(). Where the model's own code reads "
                f"it, leave it dense: sparsify(..., exclude=[{self._name or 'its name'!r}]); "
                "example_input=... finds all such layers"
            )
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                f"{type(self).__name__} has no dense weight to set: give it values with "
                "replace_topology, or tie and load dense weights before sparsify"
            )
        if name in sharing.INDICES:
            check_int32(f"{self.label()}: {name}", value)
        super().__setattr__(name, value)

    def _check_use(self) -> None:
        """Raises, before a forward pass, where the values no longer are the layer's weight."""
        if "weight_values" not in self._parameters:
            refuse_normalized(self)
        if torch.compiler.is_compiling():
            return
        if is_tracing():
            refuse_constant(self)
        if self._expects_broadcast:
            self._take_broadcast()
        if self._left_to is not None:
            self._verify_values()
        owned = self._owned
        if owned is not None and not owned.shared and not is_in_torch_dispatch_mode():
            with exchange:
                patterns.find(self.crow_indices, self.col_indices)  # which shares where it can

    def _weight(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Values, bias and indices, mostly without nn.Module's search for each."""
        if not (torch.compiler.is_compiling() or _are_overridden(type(self))):  # type: ignore[arg-type]
            parameters, buffers = self._parameters, self._buffers
            registered = "weight_values" in parameters and "bias" in parameters
            registered &= "crow_indices" in buffers and "col_indices" in buffers
            if registered and self.__dict__.keys().isdisjoint(_TENSORS):
                with exchange:  # a load with assign=True puts others in their place
                    pattern = buffers["crow_indices"], buffers["col_indices"]
                    return parameters["weight_values"], parameters["bias"], *pattern  # type: ignore[return-value]
        return self.weight_values, self.bias, self.crow_indices, self.col_indices

    @classmethod
    def from_dense(
        cls,
        dense: Any,
        sparsity: float | None = None,
        *,
        nnz: int | None = None,
        mask: Tensor | None = None,
        keep: str = "magnitude",
        block_size: int = 1,
        generator: torch.Generator | None = None,
    ) -> SparseModule:
        """The sparse twin of a layer of torch.nn; see SparseConv2d.from_dense."""
        raise NotImplementedError(f"{cls.__name__} has no dense twin")

    def dense_module(self) -> nn.Module:
        """The layer of torch.nn that computes the same: O(numel) memory."""
        raise NotImplementedError(f"{type(self).__name__} has no dense twin")

    # --- change ---

    @torch.no_grad()
    def replace_topology(
        self, crow_indices: Tensor, col_indices: Tensor, values: Tensor, *, validate: bool = True
    ) -> None:
        """Replaces pattern and values [blocks, block_size] or [nnz]. The module keeps the tensors.

        The Parameter object stays the same, so optimizers still know it; their state is the
        caller's to remap, but where a rewirer has the optimizer, which moves it before the next
        step. Its grad is dropped. A backward through a graph recorded before raises a RuntimeError,
        also when the number of non-zeros is unchanged.

        Raises ValueError for a pattern that is not sorted, unique and in range; `validate=False`
        skips that O(nnz) check. Raises RuntimeError where weight_values is parametrized or pruned,
        where its memory belongs to others, too (share_memory, FSDP), and where something holds
        autograd's accumulator of its gradient and its length changes.
        """
        parameter = self._parameters.get("weight_values")
        if parameter is None:
            raise RuntimeError(
                f"{type(self).__name__}: weight_values is not a parameter of its own "
                "(parametrized or pruned by torch?), so its pattern cannot be replaced; "
                "make that permanent first"
            )
        blocks, size = col_indices.numel(), self.block_size
        shapes = (blocks, size), (blocks * size,)
        if values.shape not in shapes or values.dtype != parameter.dtype:
            raise ValueError(
                f"values: expected shape {shapes[0]} or {shapes[1]} and {parameter.dtype}, got "
                f"{tuple(values.shape)} and {values.dtype}"
            )
        if validate:
            check_pattern(self.weight_shape, crow_indices, col_indices, size)
        refuse_held(parameter, blocks, self.label())
        if reason := why_fixed(parameter):
            raise RuntimeError(f"{self.label()}: {reason}")
        with mode_of(parameter), changing([self]):
            if not parameter.is_inference():
                crow_indices, col_indices = ordinary(crow_indices), ordinary(col_indices)
                values = ordinary(values)
            values, alike = values.detach().contiguous().view(blocks, size), self._alike()
            with exchange:
                self._exchange_values(values)
                self._exchange_pattern(crow_indices, col_indices)
                sharing.values_were_exchanged(self)
            self._tell_copies(alike)
        self._pattern_pending = False
        self._leave_behind(None)
        self.times_given += 1

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws values and bias anew, on the present pattern.

        The scheme is that of nn.Conv2d and nn.Linear: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) with the
        dense fan_in. The bound is not widened for sparsity. A module built on the meta device draws
        its pattern here too, after `to_empty`.
        """
        if self._pattern_pending and not self.weight_values.is_meta:
            if self._is_vacant():
                drawn = self._draw(self.nnz, self.weight_values.device, generator)
                self._exchange_pattern(drawn.crow_indices, drawn.col_indices)
                self._pattern_pending = False
            else:
                self.adopt_pattern()  # it has been loaded, tensor by tensor
        self._draw_parameters(generator)

    @torch.no_grad()
    def _draw_parameters(self, generator: torch.Generator | None) -> None:
        bound = 1 / math.sqrt(self.row_length)
        for parameter in (self.weight_values, self.bias):
            if parameter is None:
                continue
            if generator is None or parameter.is_meta or generator.device == parameter.device:
                parameter.uniform_(-bound, bound, generator=generator)
            else:  # the numbers of a generator of another device, such as the CPU's
                drawn = torch.empty_like(parameter, device=generator.device)
                parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
