"""summary(model): the size of each layer, sparse or dense, and why a layer stayed dense."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dsr_kernels import text_table
from dsr_kernels.convert import why_dense
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.nn.twins import without_weights


@dataclass(frozen=True)
class LayerSummary:
    """One layer. Sizes count its weight and bias; indices count as bytes, not as parameters."""

    name: str
    kind: str
    sparse: bool
    shape: tuple[int, ...]
    numel: int  # weights of the dense layer
    nnz: int  # weights held
    dense_bytes: int
    bytes: int  # values, bias and indices
    note: str  # why a layer is dense

    @property
    def density(self) -> float:
        return self.nnz / max(self.numel, 1)


@dataclass(frozen=True)
class Summary:
    """The layers of a model in order. Printed, it is a table with totals."""

    layers: list[LayerSummary]

    @property
    def sparse_layers(self) -> list[LayerSummary]:
        return [layer for layer in self.layers if layer.sparse]

    @property
    def sparse_numel(self) -> int:
        """Weights of the sparse layers, had they been dense."""
        return sum(layer.numel for layer in self.sparse_layers)

    @property
    def sparse_nnz(self) -> int:
        return sum(layer.nnz for layer in self.sparse_layers)

    @property
    def sparsity(self) -> float:
        """The share of the sparse layers' weights that is absent, as the paper counts it."""
        return 1 - self.sparse_nnz / max(self.sparse_numel, 1)

    @property
    def numel(self) -> int:
        """Weights of all layers, had they been dense; a layer without a `weight` counts whole."""
        return sum(layer.numel for layer in self.layers)

    @property
    def nnz(self) -> int:
        """Weights that all layers hold, sparse or dense."""
        return sum(layer.nnz for layer in self.layers)

    @property
    def model_sparsity(self) -> float:
        """The share of all layers' weights that is absent."""
        return 1 - self.nnz / max(self.numel, 1)

    @property
    def dense_bytes(self) -> int:
        return sum(layer.dense_bytes for layer in self.layers)

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    def __str__(self) -> str:
        header = ("layer", "kind", "shape", "weights", "held", "density", "dense", "here", "note")
        rows = [_cells(layer) for layer in self.layers]
        density = f"{self.nnz / max(self.numel, 1):.4f}"
        total = ("total", "", "", f"{self.numel:,}", f"{self.nnz:,}", density)
        rows.append((*total, _size(self.dense_bytes), _size(self.bytes), ""))
        lines = text_table.columns([header, *rows], left=(0, 1, 2, 8), rules=(1, len(rows)))
        lines.append(
            f"sparse layers: {self.sparse_nnz:,} of {self.sparse_numel:,} weights, "
            f"sparsity {self.sparsity:.4f}; whole model: {self.nnz:,} of {self.numel:,}, "
            f"sparsity {self.model_sparsity:.4f}"
        )
        return "\n".join(lines)


def summary(model: nn.Module) -> Summary:
    """Every module of `model` that holds parameters of its own, a shared one once."""
    reasons = why_dense(model)
    sizes = (m.block_size for m in model.modules() if isinstance(m, SparseModule))
    largest_block = max(sizes, default=1)
    return Summary(
        [
            _layer(
                name or "(model)",
                module,
                reasons.get(module, "not a convolution or linear layer"),
                largest_block,
            )
            for name, module in model.named_modules()
            if any(p is not None for p in module._parameters.values())
        ]
    )


def _layer(name: str, module: nn.Module, why_dense: str, largest_block: int) -> LayerSummary:
    parameters = [p for p in module._parameters.values() if p is not None]
    if any(isinstance(p, nn.UninitializedParameter) for p in parameters):
        return LayerSummary(name, type(module).__name__, False, (), 0, 0, 0, 0, why_dense)
    held = sum(p.nbytes for p in parameters)
    if isinstance(module, SparseModule):
        item = module.weight_values.element_size()
        dense = held + (module.numel - module.nnz) * item
        indices = module.crow_indices.nbytes + module.col_indices.nbytes
        shape, numel, nnz = module.weight_shape, module.numel, module.nnz
        lost = without_weights(module)
        empty = f"{lost} of {shape[0]} output channels have no weight" if lost else ""
        note = "; ".join(filter(None, (_block_note(module, largest_block), empty)))
        held += indices
    else:
        weight = module._parameters.get("weight")
        shape = tuple(weight.shape) if weight is not None else ()
        numel = nnz = sum(p.numel() for p in parameters) if weight is None else weight.numel()
        dense, note = held, why_dense
    sparse = isinstance(module, SparseModule)
    return LayerSummary(name, type(module).__name__, sparse, shape, numel, nnz, dense, held, note)


def _block_note(module: SparseModule, largest: int) -> str:
    """How many output channels share their positions, and why fewer than elsewhere in the model."""
    size, rows = module.block_size, module.weight_shape[0] // getattr(module, "groups", 1)
    if size < largest and rows % largest:
        of_group = " of a group" if getattr(module, "groups", 1) > 1 else ""
        return f"blocks of {size}: {rows} output channels{of_group} do not divide by {largest}"
    return "" if size == 1 else f"blocks of {size}"


def _cells(layer: LayerSummary) -> tuple[str, ...]:
    return (
        layer.name,
        layer.kind,
        "x".join(map(str, layer.shape)),
        f"{layer.numel:,}",
        f"{layer.nnz:,}",
        f"{layer.density:.4f}",
        _size(layer.dense_bytes),
        _size(layer.bytes),
        layer.note,
    )


def _size(count: int) -> str:
    for unit, scale in (("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
