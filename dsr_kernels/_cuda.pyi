"""The compiled GPU kernels: convolutions and rewires. A build without nvcc lacks this module.

Addresses are those of device memory, a queue is (device, the handle of a stream), and work is done
in the order of that stream. A pass is planned once (csrc/cuda/conv/plan) and then takes one call.
Every function raises ValueError for what it refuses.
"""

from collections.abc import Callable, Sequence
from typing import Any

from dsr_kernels._C import _Decisions, _Layer, _Tensor

_Address = int
_Queue = tuple[int, int]
_Pair = tuple[int, int]
_Strides = Sequence[int]  # of four: n, c, h, w
_Affine = tuple[_Address, _Address, _Address]  # center, scale, shift; 0 where absent
_SourceMap = tuple[_Address, _Affine, bool]  # beside, affine, relu
# input, affine, relu, added, sums: mean and variance, or two sums [channels] float32, written
_DestMap = tuple[_Address, _Affine, bool, _Address, tuple[_Address, _Address]]
# in_size (C, H, W), out_size (O, P, Q), kernel, stride, padding (top, left), dilation, groups
_Sizes = tuple[Sequence[int], Sequence[int], _Pair, _Pair, _Pair, _Pair, int]
# transposed, rows, groups, source_channels, dest_channels, classes, channel_block (0 without slabs)
# and three tables [KH * KW]: csrc/cuda/conv/plan/list_key.h
_Table = tuple[int, ...]
_Key = tuple[bool, int, int, int, int, int, int, _Table, _Table, _Table]

emulated: bool  # the tests' build, which runs the kernels on the CPU
architectures: str  # such as "80-real,120"
toolkit_version: int  # such as 12040
rewire_chunk: int

def device_count() -> tuple[int, str]:
    """(how many devices can run kernels, why none can)."""

def use_exchange_api(capsule: object) -> bool:
    """As dsr_kernels._C.use_exchange_api, for this module."""

class PatternList:
    """The list of non-zeros that a plan's key asks for, by its addresses. It keeps no memory."""

    @staticmethod
    def slabs(
        entries: int,
        offsets: _Address,  # [entries] int32
        value_index: _Address,  # [entries] int32
        bounds: _Address,  # [segments, 2] int32
    ) -> PatternList: ...
    @staticmethod
    def windows(
        offsets: _Address,
        bounds: _Address,
        pieces: _Address,
        places: _Address,
        piece_bounds: _Address,
        piece_size: int,  # values of a piece
        values: int,  # nnz
    ) -> PatternList:
        """csrc/cuda/conv/window_list.h."""

    @staticmethod
    def direct(
        values: int,  # nnz
        entries: _Address,  # [nnz, 4] int32
        bounds: _Address,  # [segments, 2] int32
    ) -> PatternList: ...

class ConvPlan:
    """A pass of a convolution, planned: which kernels, and how it is cut, by modelled clocks."""

    def __init__(
        self,
        direction: str,  # "forward", "grad_input" or "grad_weight"
        images: int,
        in_size: Sequence[int],  # (C, H, W)
        out_size: Sequence[int],  # (O, P, Q)
        kernel: _Pair,
        stride: _Pair,
        padding: _Pair,  # at the top and on the left
        dilation: _Pair,
        groups: int,
        density: float,  # share of non-zeros
        block_size: int,
        dtype: str,  # of activations: "float64", "float32", "bfloat16" or "float16"
        source_strides: _Strides,  # of x; of a grad-input, of y's gradient
        dest_strides: _Strides,  # of y or its gradient; of a grad-input, of x's
        device: _Pair,  # multiprocessors, bytes of shared memory that a block may have
        windows: bool,  # whether tensor cores may be taken
        # In place of the cheapest: a tiling row by row, and one by windows, as `planning` lists
        # them. None among the two: no such kernel.
        tilings: tuple[tuple | None, tuple | None] | None = None,
    ) -> None: ...
    @property
    def kind(self) -> str:
        """ "slab", "window", or "direct" where neither fits."""

    @property
    def key(self) -> _Key:
        """Of the list that the pattern needs."""

    @property
    def unmet(self) -> tuple[bool, ...]:
        """[KH * KW]: the taps that meet only padding; () if there are none."""

    @property
    def splits(self) -> int:
        """Parts of a grad-weight's positions that are summed apart."""

    @property
    def clocks(self) -> float:
        """Modelled; 0 where direct."""

    def describe(self) -> dict[str, Any]:
        """Every number of the launches."""

    def workspace_bytes(self, list: PatternList, sums: bool = False) -> int:
        """Device memory for a call; `sums`: whether its maps ask for any."""

    def gather(
        self,
        queue: _Queue,
        list: PatternList,
        source: _Tensor,
        values: _Tensor,  # [nnz] float32, beside float64 activations float64
        bias: _Tensor,  # or None
        dest: _Tensor,  # written
        workspace: _Tensor,  # aligned to 16 bytes
        maps: tuple[_SourceMap, _DestMap] | None = None,
    ) -> None:
        """Forward or grad-input, with what csrc/cuda/conv/fused.h has done beside.

        Raises TypeError for a tensor without memory; so does grad_weight.
        """

    def grad_weight(
        self,
        queue: _Queue,
        list: PatternList,
        source: _Tensor,
        grad: _Tensor,
        grad_values: _Tensor,  # [nnz], written but for taps that meet only padding
        workspace: _Tensor,
        maps: tuple[_SourceMap, _SourceMap] | None = None,  # of source and gradient
    ) -> None: ...

class limits:
    """What the kernels are made for: csrc/cuda/conv/limits.h."""

    VECTOR_BYTES: int  # of activations: the same pixel of several images
    BANKS: int  # columns of shared memory, each as wide as a vector
    COMPUTE_WARPS: int
    LIST_ALIGN: int  # entries; segments start at multiples
    LIST_SLACK: int  # entries that may be read past the last one
    WINDOW_ROWS: int  # destination channels of a window
    STEP_ENTRIES: int  # of a window's list
    WINDOW_UNITS: tuple[int, ...]  # positions of a warp
    FLOAT_WINDOW_UNITS: int  # the only ones of float32
    WINDOW_COMPUTE_WARPS: tuple[int, ...]  # of a grad-weight by windows
    TURN_STEPS: int  # that a warp of it does at once,
    HELD_TURNS: int  # and how many times as many it has sums for in its registers
    GATHER_VARIANTS: dict[int, tuple[tuple[int, int], ...]]  # element bytes -> (rows, units)
    GRAD_WEIGHT_UNITS: dict[int, tuple[int, ...]]  # element bytes -> units

class planning:
    """What there is to choose from for a pass. Structs are tuples: csrc/bindings/cuda/plan.h."""

    @staticmethod
    def pass_shape(
        direction: str,
        in_size: Sequence[int],
        out_size: Sequence[int],
        kernel: _Pair,
        stride: _Pair,
        padding: _Pair,
        dilation: _Pair,
        groups: int,
        strides: tuple[_Strides, _Strides] | None = None,
    ) -> tuple:
        """strides: of source and destination, where images may be seen as columns of pixels."""

    @staticmethod
    def gather_tilings(
        shape: tuple, images: int, density: float, element_size: int, device: _Pair
    ) -> list[tuple]: ...
    @staticmethod
    def grad_weight_tilings(
        shape: tuple, images: int, density: float, element_size: int, device: _Pair
    ) -> list[tuple]: ...
    @staticmethod
    def window_gather_tilings(
        shape: tuple,
        images: int,
        density: float,
        block_size: int,
        element_size: int,
        device: _Pair,
    ) -> list[tuple]: ...
    @staticmethod
    def window_grad_weight_tilings(
        shape: tuple,
        images: int,
        density: float,
        block_size: int,
        element_size: int,
        device: _Pair,
    ) -> list[tuple]: ...
    @staticmethod
    def layouts(c: tuple, steps: _Pair, groups: int, tile: int, width: int) -> list[tuple]:
        """Of a class, in chunks of `width` columns; groups: vectors of images."""

    @staticmethod
    def bank_conflicts(line_step: int, tile: int, width: int) -> float: ...
    @staticmethod
    def entries_met(shape: tuple, density: float, block_size: int) -> float: ...
    @staticmethod
    def slab_key(shape: tuple, channel_block: int, layouts: Sequence[tuple]) -> _Key: ...
    @staticmethod
    def direct_key(shape: tuple) -> _Key: ...

class RewirePlan(_Decisions):
    """_C.RewirePlan for layers in device memory: csrc/cuda/rewire/rewire.h."""

    def __init__(
        self,
        layers: Sequence[_Layer],
        device: int,
        stream: int,  # its handle
        # Gives device memory of so many bytes, and keeps it as long as it lives itself.
        allocate: Callable[[int], _Address],
        keep: object = None,
    ) -> None:
        """`keep` lives as long as the plan: the tensors whose addresses it has."""
