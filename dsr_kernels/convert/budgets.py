"""How many non-zeros each layer of a model gets, in whole blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import nn

from dsr_kernels.choices import check_choice
from dsr_kernels.convert.choice import Choice
from dsr_kernels.convert.globs import check_globs, fits
from dsr_kernels.distribution import DISTRIBUTIONS, budget, distribute, reachable, whole_blocks
from dsr_kernels.nn.from_dense import DenseLayer
from dsr_kernels.nn.transposed import weight_shape
from dsr_kernels.topology import fitting_block_size

FAR = 0.02  # how much whole blocks may move a layer's sparsity without a warning


class Budget(NamedTuple):
    """What a caller said about the number of non-zeros."""

    sparsity: float
    distribution: str
    overrides: Mapping[str, float]
    over: str  # "converted" or "model"
    block_size: int

    def counts(self, model: nn.Module, choice: Choice) -> list[tuple[int, int]]:
        """(non-zeros, block size) of each layer of `choice`."""
        layers, kept_dense = choice.layers, [*choice.asked, *choice.surprising]
        own = own_sparsity(layers, self.overrides, [*layers, *kept_dense])
        shapes = [weight_shape(layer) for layer in layers.values()]
        sizes = [_fitting(layer, self.block_size) for layer in layers.values()]
        fixed = {i: budget(shapes[i].numel(), s, sizes[i]) for i, s in own.items()}
        dense = count_weights(model, kept_dense) if self.over == "model" else None
        counts = share_out(shapes, self.sparsity, self.distribution, fixed, dense, sizes)
        return list(zip(counts, sizes, strict=True))

    def missed(
        self, model: nn.Module, choice: Choice, counts: list[tuple[int, int]]
    ) -> dict[str, tuple[float, float]]:
        """By layer: the sparsity it would have without blocks and the one it has with `counts`,
        where whole blocks move it by more than FAR.
        """
        if self.block_size == 1:
            return {}
        found = {}
        wanted = self._replace(block_size=1).counts(model, choice)
        triples = zip(choice.layers.items(), wanted, counts, strict=True)
        for (name, layer), (free, _), (held, _) in triples:
            numel = layer.weight.numel()
            if abs(free - held) > FAR * numel:
                found[name] = 1 - free / numel, 1 - held / numel
        return found


def _fitting(layer: DenseLayer, wanted: int) -> int:
    """The largest block size of at most `wanted` that its output channels are whole blocks of."""
    return fitting_block_size(weight_shape(layer), wanted, getattr(layer, "groups", 1))


def own_sparsity(
    layers: Mapping[str, nn.Module], overrides: Mapping[str, float], names: list[str]
) -> dict[int, float]:
    """Layer index -> sparsity, for the layers that an override names."""
    check_globs("overrides", overrides, names)
    own: dict[int, float] = {}
    for index, name in enumerate(layers):
        found = {glob: s for glob, s in overrides.items() if fits(glob, name)}
        if len(set(found.values())) > 1:
            raise ValueError(f"overrides: layer {name} is given several sparsities: {found}")
        if found:
            own[index] = next(iter(found.values()))
    return own


def share_out(
    shapes: list[torch.Size],
    sparsity: float,
    distribution: str,
    fixed: Mapping[int, int],
    dense: int | None,
    block_sizes: list[int],
) -> list[int]:
    """Non-zeros of each layer, in whole blocks.

    `fixed` gives those of some layers. `dense` counts the weights that stay dense and belong to the
    budget; if it is None, the budget is that of the layers that are not `fixed`.
    """
    check_choice(distribution, "distribution", DISTRIBUTIONS)
    free = [i for i in range(len(shapes)) if i not in fixed]
    sizes = [shapes[i].numel() for i in free]
    total = budget(sum(sizes), sparsity) if free else 0
    if dense is not None:
        taken = dense + sum(fixed.values())
        every = dense + sum(shape.numel() for shape in shapes)
        total = budget(every, sparsity) - taken
        least = sum(block_sizes[i] for i in free)
        if not least <= total <= sum(sizes):
            raise ValueError(
                f"sparsity: {sparsity} of all {every} weights cannot be met: {taken} of them stay "
                "in layers that are dense or have a sparsity of their own; reachable: "
                f"{reachable(taken + least, taken + sum(sizes), every)}"
            )
    shared = distribute([shapes[i] for i in free], total, distribution) if free else []
    shared = whole_blocks(shared, sizes, [block_sizes[i] for i in free])
    counts = dict(fixed) | dict(zip(free, shared, strict=True))
    return [counts[i] for i in range(len(shapes))]


def count_weights(model: nn.Module, names: Iterable[str]) -> int:
    """The weights of the layers that stay dense."""
    count = 0
    for name in names:
        for key, weight in model.get_submodule(name)._parameters.items():
            if isinstance(weight, nn.UninitializedParameter):
                raise ValueError(
                    f"over: 'model' counts the weights of {name}, which is lazy and has none yet; "
                    "run a forward pass first"
                )
            if weight is not None and "weight" in key:
                count += weight.numel()
    return count
