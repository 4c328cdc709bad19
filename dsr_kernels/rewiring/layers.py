"""One sparse weight with all that must move when its pattern changes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.backends.patterns import Pattern as FrozenPattern
from dsr_kernels.nn import SparseModule
from dsr_kernels.rewiring.matrix_rules import refuse_matrix_rules
from dsr_kernels.rewiring.names import named_layers

Pattern = tuple[Tensor, Tensor]  # crow_indices [O + 1], col_indices [nnz]
# Of optimizers that factor a matrix's squared gradients (torch's Adafactor, transformers', CAME):
# the key of the column factor, here one number, and that of the row factor, one number per entry.
FACTORS = {
    "col_var": "row_var",
    "exp_avg_sq_col": "exp_avg_sq_row",
    "exp_avg_res_col": "exp_avg_res_row",
}
Slot = tuple[dict[str, Any], str]  # where a tensor is held: the dict, and its key there


class KeptPattern:
    """The pattern that a module had at one moment. It takes no memory before that changes.

    By itself it is an object to compare; a copy or a pickle knows it by what it holds.
    """

    def __init__(self, module: SparseModule) -> None:
        self._keep(module.pattern())

    def _keep(self, pattern: FrozenPattern) -> None:
        self._pattern: FrozenPattern | None = pattern
        self._indices = pattern.crow_indices, pattern.col_indices

    def is_of(self, module: SparseModule) -> bool:
        """Whether the module's non-zeros are there now, perhaps on another device."""
        now = module.pattern()
        if now is self._pattern:
            return True
        pairs = zip(self._indices, (now.crow_indices, now.col_indices), strict=True)
        same = all(torch.equal(kept.to(index.device), index) for kept, index in pairs)
        if same:
            self._keep(now)
        return same

    def __getstate__(self) -> dict[str, Any]:
        return {"_pattern": None, "_indices": self._indices}


@dataclass
class SparseLayer:
    """One weight: the module that holds it, others that share its Parameter, and its averages."""

    name: str
    index: int  # in the model's order; it selects the random stream
    module: SparseModule
    sharers: list[tuple[str, SparseModule]] = field(default_factory=list)
    followers: list[tuple[str, SparseModule]] = field(default_factory=list)
    block: int = 1  # weights pruned and grown together: a kernel's k x k, or 1

    @property
    def weight_values(self) -> nn.Parameter:
        return self.module.weight_values

    @property
    def pattern(self) -> Pattern:
        return self.module.crow_indices, self.module.col_indices

    @property
    def pattern_of_blocks(self) -> Pattern:
        """The pattern of blocks: crow_indices [O + 1], col_indices [blocks]."""
        crow, col = self.pattern
        if self.block == 1:
            return crow, col
        return crow // self.block, col[:: self.block] // self.block

    def magnitudes(self) -> Tensor:
        """The scores of entries, [nnz]: the weights. Of blocks, [blocks]: the means of |w|."""
        values = self.weight_values.detach().flatten()
        return values if self.block == 1 else values.abs().view(-1, self.block).mean(1)

    def check(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Raises ValueError where this layer or its optimizer state could not be rewired."""
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
            for tensor in (module.weight_values, module.crow_indices, module.col_indices):
                if tensor.device != device:
                    raise ValueError(
                        f"layer {name!r}: expected values and indices on {device}, got one on "
                        f"{tensor.device}"
                    )
                if not tensor.is_contiguous():
                    raise ValueError(
                        f"layer {name!r}: expected contiguous tensors, got stride {tensor.stride()}"
                    )
        for name, other in others:
            check_same_pattern(self.name, self.module, name, other)
        self._check_memory()
        self._check_blocks()
        for _ in optimizer_state(optimizer, self):  # which raises
            pass

    def _check_memory(self) -> None:
        """A rewire makes new tensors, of another size perhaps. Another process would go on with the
        old ones and nobody would tell it.
        """
        for name, module in [(self.name, self.module), *self.sharers, *self.followers]:
            for tensor in (module.weight_values, module.crow_indices, module.col_indices):
                if tensor.is_cpu and tensor.is_shared():
                    raise ValueError(
                        f"layer {name!r}: its tensors are in shared memory, and other processes "
                        "would keep the old ones: expected a model of this process alone; rewire "
                        "before share_memory(), or train a copy.deepcopy of the model"
                    )

    def _check_blocks(self) -> None:
        if self.block == 1:
            return
        crow, col = self.pattern
        whole = not (crow % self.block).any() and not col.numel() % self.block
        if whole:
            blocks = col.view(-1, self.block)
            steps = torch.arange(self.block, dtype=col.dtype, device=col.device)
            whole = not (blocks[:, 0] % self.block).any()
            whole = whole and bool((blocks == blocks[:, :1] + steps).all())
        if not whole:
            size = "x".join(map(str, self.module.weight_shape[2:]))
            raise ValueError(
                f"layer {self.name!r}: expected whole {size} kernels, present or absent "
                "as one; build the model with them (sparsify's keep='kernels', the models' "
                "granularity='kernel')"
            )


def check_optimizer(optimizer: Any, layers: list[SparseLayer]) -> None:
    """Raises unless it is an optimizer that holds the values of every layer that trains.

    Raises ValueError, too, for one that would update them as a matrix (see matrix_rules.py).
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for layer in layers:
        if "weight_values" not in layer.module._parameters:
            raise ValueError(
                f"layer {layer.name!r}: weight_values is not a parameter of its own (parametrized, "
                "normalized or pruned by torch?); make that permanent first"
            )
        if layer.weight_values.requires_grad and id(layer.weight_values) not in held:
            raise ValueError(
                f"optimizer: expected it to hold the values of layer {layer.name!r}, it does not; "
                "build it from model.parameters() after the model has become sparse, or freeze the "
                "layer with requires_grad_(False)"
            )
    refuse_matrix_rules(optimizer, {layer.weight_values: layer.name for layer in layers})


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
    if not layers:
        raise ValueError(
            f"model: expected at least one sparse module, {type(model).__name__} has none; "
            "convert it with dsr_kernels.sparsify or build it from dsr_kernels.nn"
        )
    return list(layers.values())


def check_same_pattern(name: str, module: SparseModule, other: str, twin: SparseModule) -> None:
    """Raises ValueError unless `twin` has its non-zeros exactly where `module` has them."""
    if module.weight_values.device != twin.weight_values.device:
        raise ValueError(
            f"layer {name!r} and {other!r}: expected them on one device, got "
            f"{module.weight_values.device} and {twin.weight_values.device}"
        )
    same = (
        module.weight_shape == twin.weight_shape
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


def optimizer_state(optimizer: torch.optim.Optimizer | None, layer: SparseLayer) -> Iterator[Slot]:
    """Where the optimizer holds the layer's per-entry state tensors.

    Scalars such as Adam's `step` belong to no entry and are left out. Raises ValueError for a state
    tensor that is neither and for tensors in a list: they would silently become wrong.
    """
    if optimizer is None:
        return
    if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state:
        raise ValueError(
            "optimizer: LBFGS keeps 'd', 'old_dirs' and more of all parameters in one: cannot "
            f"rewire layer {layer.name!r} under it; use SGD, Adam or another that works per weight"
        )
    if layer.weight_values not in optimizer.state:
        return
    state = optimizer.state[layer.weight_values]
    for key, value in state.items():
        if _holds_tensors(value):
            raise ValueError(
                f"optimizer: state {key!r} of layer {layer.name!r} is a {type(value).__name__} of "
                f"tensors, expected a tensor: cannot rewire under {type(optimizer).__name__}"
            )
        if not isinstance(value, Tensor) or value.dim() == 0:
            continue
        if key in FACTORS or (value.numel() == 1 and layer.weight_values.numel() > 1):
            continue  # one number for all entries
        if value.shape not in (layer.weight_values.shape, layer.weight_values.shape[:1]):
            raise ValueError(
                f"optimizer: state {key!r} of layer {layer.name!r} has shape {tuple(value.shape)}, "
                f"expected {tuple(layer.weight_values.shape)}: cannot rewire under "
                f"{type(optimizer).__name__}"
            )
        if value.device != layer.weight_values.device:
            raise ValueError(
                f"optimizer: state {key!r} of layer {layer.name!r} is on {value.device}, expected "
                f"{layer.weight_values.device}"
            )
        yield state, key


def _holds_tensors(value: Any) -> bool:
    """Whether a container has per-entry tensors somewhere inside."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple | set | deque):
        return False
    return any((isinstance(v, Tensor) and v.dim() > 0) or _holds_tensors(v) for v in value)
