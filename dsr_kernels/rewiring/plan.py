"""The plan of one rewire: what a method decides with, and how the native engine opens it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dsr_kernels.backends import native
from dsr_kernels.backends.address import address, address_to_read
from dsr_kernels.backends.native import _C
from dsr_kernels.rewiring.layers import SparseLayer

CPU = torch.device("cpu")


class RewirePlan(Protocol):
    """What a method's `_prune` and `_grow` read and call: one rewire of all trainable layers.

    A layer's entries are its non-zeros or, where it is one of whole kernels, its blocks: all
    numbers here count entries. Each entry has one score, a finite number; its magnitude decides.
    The method gives the scores (`Rewirer._scores`), by default the weights. Lists have one number
    for each layer, in the order of the `layers` that `_prune` and `_grow` are given.

    One `prune_*` call decides what is pruned, and a later one replaces it. One `grow*` call then
    decides how many entries grow where. The plan changes nothing outside itself. Among entries of
    equal magnitude the later one is pruned first: that of the later layer, then that at the later
    position. A layer's entry of largest magnitude, the first of equal ones, is never pruned.
    """

    # ---- what there is --------------------------------------------------------------------------

    @property
    def nnz(self) -> list[int]:
        """Entries of each layer before the rewire."""

    @property
    def capacity(self) -> list[int]:
        """The positions of each layer at which entries can grow: those that are free before the
        rewire, for what is pruned may not return at once. 0 for a layer without entries.
        """

    # ---- pruning --------------------------------------------------------------------------------

    def prune_below(self, threshold: float) -> None:
        """Prunes every entry with |score| < threshold. Where these are more than all layers have
        capacity for, only as many of the smallest as that.

        Raises ValueError for a threshold that is NaN or below 0.
        """

    def prune_smallest(self, count: int, regrown: bool = True) -> None:
        """Prunes the `count` entries of smallest magnitude over all layers; fewer where only each
        layer's largest entry would be left.

        regrown: as many entries are to grow again, so no more are pruned than there is capacity.
        Raises ValueError for a count below 0.
        """

    def prune_smallest_each(self, counts: Sequence[int]) -> None:
        """Prunes the counts[l] entries of smallest magnitude in layer l, at most all but one.
        Capacity is no limit.

        Raises ValueError for a count below 0 and for another number of layers.
        """

    @property
    def below_each(self) -> list[int]:
        """How many entries of each layer were below the threshold of the last `prune_below`, not
        counting its largest entry; 0 before. Capacity is no limit to these numbers.
        """

    @property
    def pruned(self) -> list[int]:
        """How many entries each layer loses."""

    @property
    def threshold(self) -> float:
        """The largest of `thresholds`."""

    @property
    def thresholds(self) -> list[float]:
        """Of each layer the magnitude below which all entries are pruned, and at which the last
        ones may be. After `prune_below` it is the given one, unless capacity was a limit; else it
        is the largest magnitude pruned, 0 where nothing is. All layers have the same one, except
        after `prune_smallest_each`.
        """

    # ---- growing --------------------------------------------------------------------------------

    def grow(self, grown: Sequence[int]) -> None:
        """Grows grown[l] entries in layer l.

        Raises ValueError for a number that is negative or above the layer's capacity, and for
        another number of layers.
        """

    def grow_proportionally(self) -> None:
        """Grows as many entries as are pruned, in each layer in proportion to its survivors and
        within its capacity (`distribution.share_out`).

        Raises ValueError where the layers' capacity does not suffice, which can only be after
        `prune_smallest_each` and `prune_smallest(regrown=False)`.
        """

    @property
    def grown(self) -> list[int]:
        """How many entries each layer gains."""

    @property
    def nnz_after(self) -> list[int]:
        """nnz - pruned + grown, of each layer."""


class OpenPlan(RewirePlan, Protocol):
    """What the engine adds to a method's vocabulary."""

    def apply(self, seed: int, step: int, outputs: list[tuple]) -> None:
        """Writes each layer's new pattern and arrays to its output (`Move.output`).

        seed, step: of the random positions; `step` numbers the rewires of a run. Raises ValueError
        for outputs that do not fit and for layers that have changed since the plan was opened.
        """


def open_plan(layers: list[SparseLayer], scores: list[Tensor]) -> OpenPlan:
    """The native plan on the device that holds the layers: `_C.RewirePlan` or `_cuda.RewirePlan`,
    which give the same results, bit for bit.

    scores: of each layer [entries] or [entries, 1], float32 or float64, contiguous. The plan keeps
    them and the patterns alive; they must not change until it has been applied.

    Raises ValueError for layers on several devices and for NaN and infinite scores (on a GPU: when
    the plan prunes), NotImplementedError on a GPU where this build has no CUDA kernels.
    """
    device = _common_device(layers)
    _check_kernels(device)
    described = [_describe(layer, score) for layer, score in zip(layers, scores, strict=True)]
    tuples = [layer for layer, _ in described]
    tensors = [borrowed for _, borrowed in described]
    if device.type == "cpu":
        return _open_on_cpu(tuples, tensors)
    return _open_on_gpu(tuples, tensors, device)


def _common_device(layers: list[SparseLayer]) -> torch.device:
    for layer in layers[1:]:
        first = layers[0]
        if layer.weight_values.device != first.weight_values.device:
            raise ValueError(
                f"layers {first.name!r} and {layer.name!r}: expected all layers on one device, got "
                f"{first.weight_values.device} and {layer.weight_values.device}"
            )
    return layers[0].weight_values.device if layers else CPU


def _check_kernels(device: torch.device) -> None:
    if device.type != "cpu" and native._cuda is None:
        raise NotImplementedError(
            f"rewiring layers on {device} needs the CUDA kernels, which this build of dsr_kernels "
            "lacks: install it anew where there is nvcc, or move the model to the CPU for the "
            "rewire"
        )


def _open_on_cpu(layers: list[tuple], keep: list[list[Tensor]]) -> OpenPlan:
    """`keep` lives as long as the plan."""
    return _C.RewirePlan(layers, torch.get_num_threads(), keep)


def _open_on_gpu(layers: list[tuple], keep: list[list[Tensor]], device: torch.device) -> OpenPlan:
    workspaces: list[Tensor] = []

    def allocate(size: int) -> int:
        workspaces.append(torch.empty(size, dtype=torch.uint8, device=device))
        return address(workspaces[-1])

    return native._cuda.RewirePlan(layers, *_queue(device), allocate, keep)


def _queue(device: torch.device) -> tuple[int, int]:
    """(device, stream): work there is done in the order of torch's own."""
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _describe(layer: SparseLayer, scores: Tensor) -> tuple[tuple, list[Tensor]]:
    """A layer as the native plan takes it, and the tensors whose memory the plan borrows.

    Raises ValueError for index tensors that are not those of a pattern, and for scores that are not
    one number for each entry: the native code reads their memory unchecked.
    """
    crow, col = layer.pattern_of_entries
    rows = layer.module.weight_shape[0] // layer.module.block_size
    for name, index, shape in (("crow", crow, (rows + 1,)), ("col", col, (layer.entries,))):
        _check_index(f"layer {layer.name!r}: expected {name}_indices", index, shape, crow.device)
    if (
        scores.shape != col.shape
        or scores.device != col.device
        or scores.dtype not in native.DTYPE_CODES
        or not scores.is_contiguous()
    ):
        raise ValueError(
            f"layer {layer.name!r}: expected contiguous float32 or float64 scores of shape "
            f"{tuple(col.shape)} on {col.device}, got {scores.dtype} of shape "
            f"{tuple(scores.shape)} and strides {scores.stride()} on {scores.device}"
        )
    described = (
        layer.name,
        rows,
        layer.module.row_length // layer.kernel,
        col.numel(),
        address_to_read(crow),
        address_to_read(col),
        address(scores),
        str(scores.dtype).removeprefix("torch."),
        layer.index,
    )
    return described, [crow, col, scores]


def _check_index(
    expected: str, index: Tensor, shape: tuple[int, ...], device: torch.device
) -> None:
    right = index.dtype == torch.int32 and index.device == device and index.is_contiguous()
    if not right or index.shape != shape:
        raise ValueError(
            f"{expected} to be contiguous int32 of shape {shape} on {device}, got {index.dtype} of "
            f"shape {tuple(index.shape)} and strides {index.stride()} on {index.device}"
        )
