"""One sparse weight with all that must move when its pattern changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.backends.address import address_to_read
from dsr_kernels.backends.pattern import Pattern as FrozenPattern
from dsr_kernels.backends.pattern import check_int32
from dsr_kernels.nn import SparseModule
from dsr_kernels.nn.accumulators import is_held, note_parallels_of
from dsr_kernels.nn.leaf import why_fixed
from dsr_kernels.rewiring.names import named_layers

Pattern = tuple[Tensor, Tensor]  # crow_indices [O // block_size + 1], col_indices [blocks]
BLOCK_SCORES = ("mean", "l2")
Slot = tuple[dict[str, Any], str]  # where a tensor is held: the dict, and its key there


class KeptPattern:
    """The pattern that a module had at one moment. It takes no memory before that changes.

    By itself it is an object to compare; a copy or a pickle knows it by what it holds. Raises
    RuntimeError where something else than the module has written to its index tensors.
    """

    def __init__(self, module: SparseModule) -> None:
        self._pattern: FrozenPattern | None = None
        self.indices: Pattern = module.crow_indices, module.col_indices
        if not self._is_none():
            self._keep(module.pattern())

    def _keep(self, pattern: FrozenPattern) -> None:
        self._pattern = pattern
        self.indices = pattern.crow_indices, pattern.col_indices

    def _is_none(self) -> bool:
        """On meta there is no pattern yet."""
        return self.indices[1].is_meta

    def is_of(self, module: SparseModule) -> bool:
        """Whether the module's non-zeros are there now, perhaps on another device; on meta nothing
        tells that they are not.
        """
        if self._is_none() or module.col_indices.is_meta:
            return True
        now = module.pattern()
        if now is self._pattern:
            return True
        pairs = zip(self.indices, (now.crow_indices, now.col_indices), strict=True)
        same = all(torch.equal(kept.to(index.device), index) for kept, index in pairs)
        if same:
            self._keep(now)
        return same

    def __getstate__(self) -> dict[str, Any]:
        return {"_pattern": None, "indices": self.indices}


@dataclass
class SparseLayer:
    """One weight: the module that holds it, others that share its Parameter, and its averages."""

    name: str
    index: int  # in the model's order; it selects the random stream
    module: SparseModule
    sharers: list[tuple[str, SparseModule]] = field(default_factory=list)
    followers: list[tuple[str, SparseModule]] = field(default_factory=list)
    kernel: int = 1  # positions pruned and grown together: a kernel's k x k, or 1
    block_score: str = "mean"  # of BLOCK_SCORES: what several weights together are worth

    @property
    def weight_values(self) -> nn.Parameter:
        return self.module.weight_values

    @property
    def modules(self) -> list[SparseModule]:
        """All that a rewire changes."""
        return [self.module, *(module for _, module in self.sharers + self.followers)]

    @property
    def block(self) -> int:
        """Weights pruned and grown together: those of an entry."""
        return self.kernel * self.module.block_size

    @property
    def entries(self) -> int:
        return self.module.blocks // self.kernel

    @property
    def free_entries(self) -> int:
        """Where entries could be, and are not."""
        return (self.module.numel - self.module.nnz) // self.block

    @property
    def pattern(self) -> Pattern:
        return self.module.crow_indices, self.module.col_indices

    @property
    def pattern_of_entries(self) -> Pattern:
        """crow_indices [O // block_size + 1], col_indices [entries]."""
        crow, col = self.pattern
        if self.kernel == 1:
            return crow, col
        return crow // self.kernel, col[:: self.kernel] // self.kernel

    def magnitudes(self) -> Tensor:
        """The scores of entries, [entries]: single weights, or of several the mean of |w| or ("l2")
        the root of the mean of w^2.
        """
        values = self.weight_values.detach().flatten()
        if self.block == 1:
            return values
        together = values.view(-1, self.block)
        if self.block_score == "l2":
            return together.square().mean(1).sqrt()
        return together.abs().mean(1)

    def check_whole(self) -> None:
        """Raises ValueError where a parallel wrapper keeps the values in parts: a DTensor, or a
        piece of FSDP1's parameter, which takes a layer's own away without `use_orig_params`.
        """
        held = self.module._parameters.get("weight_values")
        kinds = {kind.__name__ for kind in type(held).__mro__}
        taken = held is None and getattr(self.module, "_is_fsdp_managed_module", False)
        if taken or getattr(held, "_fsdp_flattened", False):
            parts = "a piece of a parameter of FullyShardedDataParallel"
        elif "DTensor" in kinds:
            parts = "a DTensor (fully_shard, tensor parallelism)"
        else:
            return
        raise ValueError(
            f"layer {self.name!r}: its values are {parts}, of which a rewire would reach a part "
            "only; use dsr_kernels.distributed.DistributedDataParallel"
        )

    def is_held(self) -> bool:
        """Whether something holds the accumulator of its gradient, or of an average's: then its
        number of entries cannot change.
        """
        modules = [self.module, *(follower for _, follower in self.followers)]
        return any(is_held(module.weight_values) for module in modules)

    def check(self) -> None:
        """Raises ValueError where this layer could not be rewired, RuntimeError where something
        else has written to its index tensors.
        """
        if self.weight_values.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"layer {self.name!r}: expected float32 or float64 values, got "
                f"{self.weight_values.dtype}"
            )
        device = self.weight_values.device
        if device.type not in ("cpu", "cuda"):
            raise ValueError(
                f"layer {self.name!r}: rewiring works on CPU and CUDA tensors, got {device}"
            )
        others = self.sharers + self.followers
        for name, module in [(self.name, self.module), *others]:
            check_int32(f"layer {name!r}: crow_indices", module.crow_indices)
            check_int32(f"layer {name!r}: col_indices", module.col_indices)
            for tensor in (module.weight_values, module.crow_indices, module.col_indices):
                if tensor.device != device:
                    raise ValueError(
                        f"layer {name!r}: expected values and indices on {device}, got one on "
                        f"{tensor.device}"
                    )
                try:
                    address_to_read(tensor)
                except TypeError as error:  # a DTensor, say, or another wrapper subclass
                    raise ValueError(f"layer {name!r}: {error}") from None
                if not tensor.is_contiguous():
                    raise ValueError(
                        f"layer {name!r}: expected contiguous tensors, got stride {tensor.stride()}"
                    )
        for module in (self.module, *(sharer for _, sharer in self.sharers)):
            module.pattern()  # raises where another has written to it
        for name, other in others:
            check_same_pattern(self.name, self.module, name, other)
        self._check_memory()
        self._check_kernels()

    def _check_memory(self) -> None:
        """A rewire makes new tensors. Whoever else has the old ones would go on with them."""
        for name, module in [(self.name, self.module), *self.sharers, *self.followers]:
            for tensor in (module.weight_values, module.crow_indices, module.col_indices):
                if reason := why_fixed(tensor):
                    raise ValueError(f"layer {name!r}: {reason}")

    def _check_kernels(self) -> None:
        if self.kernel == 1:
            return
        crow, col = self.pattern
        whole = not (crow % self.kernel).any() and not col.numel() % self.kernel
        if whole:
            kernels = col.view(-1, self.kernel)
            steps = torch.arange(self.kernel, dtype=col.dtype, device=col.device)
            whole = not (kernels[:, 0] % self.kernel).any()
            whole = whole and bool((kernels == kernels[:, :1] + steps).all())
        if not whole:
            size = "x".join(map(str, self.module.weight_shape[2:]))
            raise ValueError(
                f"layer {self.name!r}: expected whole {size} kernels, present or absent "
                "as one; build the model with them (sparsify's keep='kernels', the models' "
                "granularity='kernel')"
            )


def find_layers(model: nn.Module) -> list[SparseLayer]:
    """The model's sparse weights in its order; modules that share a Parameter are one layer."""
    layers: dict[int, SparseLayer] = {}
    for name, module in named_layers(model):
        module.know_name(name)
        # A parametrized layer's values are made anew at each access: it shares them with nobody.
        shared = module._parameters.get("weight_values", module)
        layer = layers.get(id(shared))
        if layer is None:
            layers[id(shared)] = SparseLayer(name, len(layers), module)
        else:
            layer.sharers.append((name, module))
    _refuse_sharded(model)
    note_parallels_of(model)
    if not layers:
        raise ValueError(
            f"model: expected at least one sparse module, {type(model).__name__} has none; "
            "convert it with dsr_kernels.sparsify or build it from dsr_kernels.nn"
        )
    return list(layers.values())


def _refuse_sharded(model: nn.Module) -> None:
    """FSDP keeps parameters in parts of its own: a rewire would not reach them."""
    for module in model.modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if sharded := kinds & {"FullyShardedDataParallel", "FSDPModule"}:
            for name, _ in named_layers(module):
                raise ValueError(
                    f"layer {name!r}: {min(sharded)} keeps its values in parts, which a rewire "
                    "would not reach; use dsr_kernels.distributed.DistributedDataParallel"
                )


def check_same_pattern(name: str, module: SparseModule, other: str, twin: SparseModule) -> None:
    """Raises ValueError unless `twin` has its non-zeros exactly where `module` has them."""
    if module.weight_values.device != twin.weight_values.device:
        raise ValueError(
            f"layer {name!r} and {other!r}: expected them on one device, got "
            f"{module.weight_values.device} and {twin.weight_values.device}"
        )
    same = (
        module.weight_shape == twin.weight_shape
        and module.block_size == twin.block_size
        and torch.equal(module.crow_indices, twin.crow_indices)
        and torch.equal(module.col_indices, twin.col_indices)
    )
    if not same:
        raise ValueError(
            f"layer {name!r} and {other!r}: expected the same pattern, but their non-zeros differ "
            f"({module.nnz} of {tuple(module.weight_shape)} and {twin.nnz} of "
            f"{tuple(twin.weight_shape)}). An average must be one of parameters alone: integers "
            "that are averaged are rounded (AveragedModel(use_buffers=False), or leave out "
            "crow_indices and col_indices)"
        )
