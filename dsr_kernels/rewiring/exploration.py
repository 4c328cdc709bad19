"""How many of all positions a rewiring method has tried."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsr_kernels.rewiring.layers import KeptPattern, SparseLayer, find_layers
from dsr_kernels.rewiring.names import under_names


class Exploration:
    """The positions of each sparse layer that have ever been active: one bit each.

    `rate` is R_s of In-Time Over-Parameterization (Liu et al., ICML 2021): the share of all
    positions of the sparse layers that have been in a pattern. A layer takes numel / 8 bytes, of
    blocks numel / block_size / 8; the values and indices of a 90 % sparse layer take 0.8 bytes for
    each position.

    Args:
        model: holds the sparse modules. Their present patterns count.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = find_layers(model)
        self._bitmaps = [
            torch.zeros((positions + 7) // 8, dtype=torch.uint8, device=layer.weight_values.device)
            for layer, positions in zip(self._layers, map(_positions, self._layers), strict=True)
        ]
        self._counted: list[KeptPattern | None] = [None] * len(self._layers)
        self._active = 0
        self.update()

    @property
    def rate(self) -> float:
        """The share of all positions that have been active, in (0, 1]."""
        return self._active / sum(layer.module.numel for layer in self._layers)

    @torch.no_grad()
    def update(self) -> None:
        """Counts the present patterns. Call it after each iteration that may have rewired: a
        position that is active only between two calls is not counted.

        Takes O(non-zeros) of the layers that have changed since the last call.
        """
        for index, (layer, bitmap) in enumerate(zip(self._layers, self._bitmaps, strict=True)):
            counted = self._counted[index]
            if counted is not None and counted.is_of(layer.module):
                continue
            self._counted[index] = KeptPattern(layer.module)
            positions = layer.module.topology.linear_positions()
            # Positions of one byte are neighbours and distinct, so their bits add up to its mask.
            byte, group = (positions >> 3).unique_consecutive(return_inverse=True)
            bits = torch.ones_like(positions) << (positions & 7)
            masks = torch.zeros_like(byte).index_add_(0, group, bits).to(torch.uint8)
            former = bitmap[byte]
            self._active += _population(masks & ~former) * layer.module.block_size
            bitmap[byte] = former | masks

    def state_dict(self) -> dict[str, Tensor]:
        """The bitmap of each layer, uint8 [ceil(numel / block_size / 8)], on the CPU."""
        pairs = zip(self._layers, self._bitmaps, strict=True)
        return {layer.name: bitmap.cpu().clone() for layer, bitmap in pairs}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continues where `state_dict` was taken. Raises ValueError for bitmaps of other layers."""
        expected = {
            layer.name: bitmap.shape
            for layer, bitmap in zip(self._layers, self._bitmaps, strict=True)
        }
        state = under_names(expected, state)
        found = {name: bitmap.shape for name, bitmap in state.items()}
        if found != expected:
            raise ValueError(f"state_dict: expected bitmaps {expected}, got {found}")
        for layer, bitmap in zip(self._layers, self._bitmaps, strict=True):
            bitmap.copy_(state[layer.name])
        self._active = sum(
            _population(bitmap) * layer.module.block_size
            for layer, bitmap in zip(self._layers, self._bitmaps, strict=True)
        )


def _positions(layer: SparseLayer) -> int:
    return layer.module.numel // layer.module.block_size


def _population(masks: Tensor) -> int:
    """How many bits are set in a uint8 tensor."""
    counts = torch.bincount(masks.flatten(), minlength=256).cpu()
    bits = torch.tensor([value.bit_count() for value in range(256)])
    return int((counts * bits).sum())
