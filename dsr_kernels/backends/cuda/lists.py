"""The list of non-zeros in the order in which a GPU kernel takes them, made where they live.

Plain torch on the pattern's device: no copy to the host, nothing waits, and the same bits anywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dsr_kernels.backends import native
from dsr_kernels.backends.address import address
from dsr_kernels.backends.blocks import block_size_of, expand


class ListKey(NamedTuple):
    """What the list of a pass depends on besides the pattern."""

    transposed: bool
    rows: int  # O
    groups: int
    source_channels: int  # of one group
    dest_channels: int  # of one group
    classes: int  # one more than the pass has, for taps that meet no destination pixel
    channel_block: int
    tap_class: tuple[int, ...]  # [KH * KW]
    tap_offset: tuple[int, ...]  # [KH * KW] bytes in a channel's slab
    tap_plane: tuple[int, ...]  # [KH * KW] bytes from channel to channel in the tap's class

    @property
    def blocks(self) -> int:
        return -(-self.source_channels // self.channel_block)

    @property
    def segments(self) -> int:
        return self.classes * self.blocks * self.groups * self.dest_channels


class OnDevice:
    """A plan's tensors, which calls on any stream may read."""

    handle: native._cuda.PatternList  # has their addresses

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._tensors = tensors
        self._made: torch.cuda.Event | None = None
        self._made_on = 0  # the handle of the stream
        if tensors[0].is_cuda:
            stream = torch.cuda.current_stream(tensors[0].device)
            self._made, self._made_on = stream.record_event(), stream.cuda_stream

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self._tensors)

    def wait(self, stream: int) -> None:
        """Orders what follows on the current stream, of this handle, after the list was made.

        Nothing to do on the stream that made it, nor in a graph: its capture began with the device
        idle, and refuses events from outside.
        """
        if self._made is None or stream == self._made_on:
            return
        if not torch.cuda.is_current_stream_capturing():
            current = torch.cuda.current_stream(self._tensors[0].device)
            current.wait_event(self._made)
            for tensor in self._tensors:
                tensor.record_stream(current)


class NonZeroList(OnDevice):
    def __init__(self, offsets: Tensor, value_index: Tensor, bounds: Tensor) -> None:
        super().__init__((offsets, value_index, bounds))
        self.offsets = offsets  # [entries] int32: bytes in a slab
        # [entries] int32; -1 in the gaps between segments, and where a tap meets only padding.
        self.value_index = value_index
        self.bounds = bounds  # [segments, 2] int32: first entry, one past the last
        self.entries = offsets.numel()
        tables = address(offsets), address(value_index), address(bounds)
        self.handle = native._cuda.PatternList.slabs(self.entries, *tables)


class DirectKey(NamedTuple):
    """As ListKey, for the kernels without a slab."""

    transposed: bool
    rows: int
    groups: int
    source_channels: int
    dest_channels: int
    classes: int
    tap_class: tuple[int, ...]
    tap_dh: tuple[int, ...]  # [KH * KW] source row of destination row 0
    tap_dw: tuple[int, ...]


class DirectList(OnDevice):
    def __init__(self, entries: Tensor, bounds: Tensor) -> None:
        super().__init__((entries, bounds))
        self.entries = entries  # [nnz, 4] int32: channel, dh, dw, index of the value
        self.bounds = bounds  # [segments, 2] int32
        tables = address(entries), address(bounds)
        self.handle = native._cuda.PatternList.direct(len(entries), *tables)


class UnmetList(OnDevice):
    def __init__(self, mask: Tensor) -> None:
        super().__init__((mask,))
        self.mask = mask  # [blocks] bool: those that no kernel sees


class _NonZeros(NamedTuple):
    tap: Tensor  # [nnz] int64
    source: Tensor  # [nnz] source channel in its group
    dest: Tensor  # [nnz] destination channel of all groups
    value: Tensor  # [nnz] which of the flat values it has


def build_list(crow_indices: Tensor, col_indices: Tensor, key: ListKey) -> NonZeroList:
    """The list of a pass with slabs."""
    nonzeros = _take_apart(crow_indices, col_indices, key)
    device, nnz = col_indices.device, nonzeros.tap.numel()
    tables = key.tap_class, key.tap_offset, key.tap_plane
    tap_class, tap_offset, tap_plane = torch.tensor(tables).to(device, non_blocking=True)
    block = nonzeros.source // key.channel_block
    channels = key.groups * key.dest_channels
    segment = (tap_class[nonzeros.tap] * key.blocks + block) * channels + nonzeros.dest
    segment, order, first = ordered(segment, key.segments)
    count = first.diff()
    starts = torch.zeros_like(first)
    # Segments start at multiples of `align` entries; a kernel may read `slack` past the last one.
    align, slack = native._cuda.limits.LIST_ALIGN, native._cuda.limits.LIST_SLACK
    torch.cumsum((count + align - 1) // align * align, 0, out=starts[1:])
    place = starts[segment] + torch.arange(nnz, device=device) - first[segment]
    # A bound, since how many segments are empty is known on the device alone.
    entries = nnz + min(nnz, key.segments) * (align - 1) + slack
    entries = -(-entries // align) * align
    offset = tap_offset[nonzeros.tap]
    offset += nonzeros.source % key.channel_block * tap_plane[nonzeros.tap]
    offsets = torch.zeros(entries, dtype=torch.int32, device=device)
    offsets[place] = offset[order].int()
    value_index = torch.full_like(offsets, -1)
    met = segment < (key.classes - 1) * key.blocks * channels
    value_index[place] = torch.where(met, nonzeros.value[order], -1).int()
    bounds = torch.stack((starts[:-1], starts[:-1] + count), 1).int()
    return NonZeroList(offsets, value_index, bounds)


def build_direct_list(crow_indices: Tensor, col_indices: Tensor, key: DirectKey) -> DirectList:
    """The list of a pass without slabs."""
    nonzeros = _take_apart(crow_indices, col_indices, key)
    tables = torch.tensor((key.tap_class, key.tap_dh, key.tap_dw))
    tap_class, tap_dh, tap_dw = tables.to(col_indices.device, non_blocking=True)
    channels = key.groups * key.dest_channels
    segment = tap_class[nonzeros.tap] * channels + nonzeros.dest
    _, order, first = ordered(segment, key.classes * channels)
    tap = nonzeros.tap[order]
    columns = nonzeros.source[order], tap_dh[tap], tap_dw[tap], nonzeros.value[order]
    entries = torch.stack(columns, 1).int()
    return DirectList(entries, torch.stack((first[:-1], first[1:]), 1).int())


def build_unmet(crow_indices: Tensor, col_indices: Tensor, unmet: tuple[bool, ...]) -> UnmetList:
    """The blocks of taps that meet only padding: unmet [KH * KW]."""
    table = torch.tensor(unmet).to(col_indices.device, non_blocking=True)
    return UnmetList(table[col_indices.long() % len(unmet)])


def _take_apart(crow: Tensor, col: Tensor, key: ListKey | DirectKey) -> _NonZeros:
    """Every non-zero's tap and channels, in CSR order, of blocks row by row."""
    block_size = block_size_of(crow, key.rows)
    value = None
    if block_size > 1:
        crow, col, value = expand(crow, col, block_size)
    index = torch.arange(col.numel(), dtype=torch.int32, device=col.device)
    value = index if value is None else value
    row = torch.searchsorted(crow, index, right=True) - 1
    taps = len(key.tap_class)
    tap, channel = col.long() % taps, col.long() // taps
    if not key.transposed:
        return _NonZeros(tap, channel, row, value)
    rows_of_group = key.rows // key.groups
    group = row // rows_of_group
    return _NonZeros(tap, row % rows_of_group, group * key.dest_channels + channel, value)


def ordered(segment: Tensor, segments: int) -> tuple[Tensor, Tensor, Tensor]:
    """(sorted segments, the order that sorts them stably, [segments + 1] first of each)."""
    in_order, order = segment.sort(stable=True)
    numbers = torch.arange(segments + 1, device=segment.device)
    return in_order, order, torch.searchsorted(in_order, numbers)
