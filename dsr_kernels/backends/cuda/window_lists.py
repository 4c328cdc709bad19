"""The list of non-zeros as the tensor-core kernels take it: csrc/cuda/conv/window_list.h.

A window is 16 consecutive destination channels of a group. A position of it is a source channel and
a tap at which any of them has a non-zero. Positions of a segment (class, block of source channels,
group, window) stand together, 16 to a step. A piece is a block's part in a window: consecutive
values, at consecutive places of the step's 16 x 16 tile of weights, which the kernel puts together.

Plain torch on the pattern's device, as in `lists`: nothing waits, and memory is a few bytes per
non-zero, since sizes that only the device knows are replaced by bounds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dsr_kernels.backends import native
from dsr_kernels.backends.address import address
from dsr_kernels.backends.blocks import block_size_of
from dsr_kernels.backends.cuda.lists import ListKey, OnDevice, ordered


class WindowList(OnDevice):
    def __init__(
        self,
        offsets: Tensor,
        bounds: Tensor,
        pieces: Tensor,
        places: Tensor,
        piece_bounds: Tensor,
        piece_size: int,
    ) -> None:
        super().__init__((offsets, bounds, pieces, places, piece_bounds))
        # [16 * steps] int32: bytes in a slab. A segment's last step is filled up with its last
        # position, whose weights then are zeros.
        self.offsets = offsets
        self.bounds = bounds  # [segments, 2] int32: first step, one past the last
        self.pieces = pieces  # [pieces] int32: the first of the flat values that a piece has
        self.places = places  # [pieces] uint8: where it starts in the tile of its step
        self.piece_bounds = piece_bounds  # [steps + 1] int32: first piece of each step
        self.piece_size = piece_size
        self.handle = native._cuda.PatternList.windows(
            address(offsets),
            address(bounds),
            address(pieces),
            address(places),
            address(piece_bounds),
            piece_size,
            pieces.numel() * piece_size,
        )


class _Pieces(NamedTuple):
    """In the pattern's order; [pieces] int64 each."""

    tap: Tensor
    source: Tensor  # first source channel in its group
    dest: Tensor  # first destination channel of all groups
    value: Tensor  # first of the flat values


def windows_of(key: ListKey) -> int:
    """Windows of a group."""
    return -(-key.dest_channels // native._cuda.limits.WINDOW_ROWS)


def whole_rows(block_size: int, rows: int) -> int:
    """How many rows of a block neither windows nor groups of `rows` rows take apart.

    Layers have whole blocks in each group, but the ops take any pattern.
    """
    return math.gcd(block_size, native._cuda.limits.WINDOW_ROWS, rows)


def piece_size_of(block_size: int, key: ListKey) -> int:
    """Values of a piece: 1 where blocks would be cut by blocks of source channels."""
    size = whole_rows(block_size, key.rows // key.groups)
    cut = key.transposed and key.blocks > 1 and key.channel_block % size
    return 1 if cut else size


def build_windows(crow_indices: Tensor, col_indices: Tensor, key: ListKey) -> WindowList:
    """The list of a pass with windows."""
    window, step = native._cuda.limits.WINDOW_ROWS, native._cuda.limits.STEP_ENTRIES
    device = col_indices.device
    block_size = block_size_of(crow_indices, key.rows)
    size = piece_size_of(block_size, key)
    pieces = _take_apart(crow_indices, col_indices, key, block_size, size)
    count = pieces.tap.numel()
    # A unit: positions of consecutive source channels that pieces fill together, or one position.
    span = size if key.transposed else 1
    tables = key.tap_class, key.tap_offset, key.tap_plane
    tap_class, tap_offset, tap_plane = torch.tensor(tables).to(device, non_blocking=True)
    windows, taps = windows_of(key), len(key.tap_class)
    segment = _segment_of(pieces, key, tap_class)
    row, source = pieces.dest % key.dest_channels, pieces.source % key.channel_block
    segments = key.classes * key.blocks * key.groups * windows
    units = -(-key.channel_block // span) * taps  # of a segment, at most
    most = min(count, key.blocks * key.groups * windows * units)

    by_unit, order = (segment * units + source // span * taps + pieces.tap).sort(stable=True)
    starts = torch.ones_like(by_unit)
    starts[1:] = by_unit[1:] != by_unit[:-1]
    unit_of_piece = starts.cumsum(0) - 1
    # How many units there are is known on the device alone: those that are not belong to no
    # segment.
    number = torch.arange(most, device=device)
    first = torch.searchsorted(unit_of_piece, number).clamp_(max=max(0, count - 1))
    there = number <= unit_of_piece[-1:]
    of_unit = order[first]
    unit_segment = torch.where(there, segment[of_unit], segments)
    unit_offset = tap_offset[pieces.tap[of_unit]]
    plane = tap_plane[pieces.tap[of_unit]]
    unit_offset += source[of_unit] // span * span * plane

    unit_order, first_unit = _order_by_banks(
        unit_segment, unit_offset, plane, span, segments, units
    )
    positions = first_unit.diff() * span
    first_step = torch.zeros_like(first_unit)
    torch.cumsum((positions + step - 1) // step, 0, out=first_step[1:])
    steps = (most * span + (step - 1) * min(most, segments)) // step
    unit_place = torch.empty_like(number)
    placed = unit_segment[unit_order].clamp_(max=max(0, segments - 1))
    unit_place[unit_order] = first_step[placed] * step + (number - first_unit[placed]) * span

    offsets = _positions(steps, span, first_step, first_unit, unit_offset[unit_order],
                         plane[unit_order])  # fmt: skip
    place = unit_place[unit_of_piece] if count else unit_of_piece
    place, of_place = place.sort(stable=True)
    order = order[of_place]
    row, k = row[order] % window, place % step
    piece_bounds = torch.searchsorted(place // step, torch.arange(steps + 1, device=device))
    return WindowList(
        offsets,
        torch.stack((first_step[:-1], first_step[1:]), 1).int(),
        pieces.value[order].int(),
        (row * step + k if key.transposed else k * window + row).to(torch.uint8),
        piece_bounds.int(),
        size,
    )


def _segment_of(pieces: _Pieces, key: ListKey, tap_class: Tensor) -> Tensor:
    """[pieces]: class, block of source channels, group and window, as one number."""
    group, row = pieces.dest // key.dest_channels, pieces.dest % key.dest_channels
    block = pieces.source // key.channel_block
    segment = (tap_class[pieces.tap] * key.blocks + block) * key.groups + group
    return segment * windows_of(key) + row // native._cuda.limits.WINDOW_ROWS


def _take_apart(crow: Tensor, col: Tensor, key: ListKey, block_size: int, size: int) -> _Pieces:
    """Every piece's tap and channels, in the order of the blocks."""
    taps, device = len(key.tap_class), col.device
    block = torch.arange(col.numel(), device=device)
    row = (torch.searchsorted(crow, block.int(), right=True) - 1) * block_size
    within = torch.arange(0, block_size, size, device=device)
    row, value = ((n[:, None] + within).flatten() for n in (row, block * block_size))
    column = col.long().repeat_interleave(within.numel())
    tap, channel = column % taps, column // taps
    if not key.transposed:
        return _Pieces(tap, channel, row, value)
    rows_of_group = key.rows // key.groups
    group = row // rows_of_group
    return _Pieces(tap, row % rows_of_group, group * key.dest_channels + channel, value)


def _order_by_banks(
    segment: Tensor, offset: Tensor, plane: Tensor, span: int, segments: int, units: int
) -> tuple[Tensor, Tensor]:
    """(the units segment by segment, [segments + 1] the first of each).

    Eight consecutive positions are read at once. Those of a segment are dealt out so that eight
    fall on different banks as long as there are enough of each. Planes are odd numbers of vectors,
    so a unit's own positions do, and times its plane (its own inverse modulo 8) the bank of its
    first position says which units complete each other.
    """
    banks, vector = native._cuda.limits.BANKS, native._cuda.limits.VECTOR_BYTES
    bank = offset // vector * (plane // vector) % banks
    within = min(span, banks)
    turn = bank % within * (banks // within) + bank // within
    key, order = (segment * banks + turn).sort(stable=True)
    number = torch.arange(key.numel(), device=key.device)
    rank = number - torch.searchsorted(key, key)
    key = (key // banks * units + rank) * banks + key % banks
    _, dealt = key.sort()
    order = order[dealt]
    _, _, first = ordered(segment, segments)
    return order, first


def _positions(
    steps: int, span: int, first_step: Tensor, first_unit: Tensor, offset: Tensor, plane: Tensor
) -> Tensor:
    """[16 * steps] int32: the offset at each place of each step."""
    step = native._cuda.limits.STEP_ENTRIES
    place = torch.arange(steps * step, device=offset.device)
    if not offset.numel():
        return place.int()
    last = first_step.numel() - 2
    segment = torch.searchsorted(first_step, place // step, right=True) - 1
    beyond = segment > last
    segment = segment.clamp_(max=last)
    within = place - first_step[segment] * step
    count = (first_unit[segment + 1] - first_unit[segment]) * span
    within = torch.minimum(within, (count - 1).clamp_(min=0))
    unit = (first_unit[segment] + within // span).clamp_(max=offset.numel() - 1)
    return torch.where(beyond, 0, offset[unit] + within % span * plane[unit]).int()
