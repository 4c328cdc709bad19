"""The compiled GPU kernels: convolutions and rewires. A build without nvcc lacks this module.

Addresses are those of device memory, a queue is (device, the handle of a stream), and work is done
in the order of that stream. A pass is a struct that backends.cuda.prepare fills; csrc/cuda/conv
says what its fields mean. Every function raises ValueError for what it refuses.
"""

from collections.abc import Callable, Sequence

from dsr_kernels._C import _Decisions, _Layer, _Tensor

_Address = int
_Queue = tuple[int, int]
_Strides = Sequence[int]  # of four: n, c, h, w
_Affine = tuple[_Address, _Address, _Address]  # center, scale, shift; 0 where absent
# Addresses of offsets, bounds, pieces, places and piece_bounds; values of a piece, and of all.
_WindowList = tuple[_Address, _Address, _Address, _Address, _Address, int, int]
_SourceMap = tuple[_Address, _Affine, bool]  # beside, affine, relu
# input, affine, relu, added, partial, parts, first part
_DestMap = tuple[_Address, _Affine, bool, _Address, _Address, int, int]

emulated: bool  # the tests' build, which runs the kernels on the CPU
architectures: str  # such as "80-real,120"
toolkit_version: int  # such as 12040
rewire_chunk: int

def device_count() -> tuple[int, str]:
    """(how many devices can run kernels, why none can)."""

class Slab:
    """The part of the source that a thread block keeps in shared memory: csrc/cuda/conv/slab.h."""

    rows: int
    cols: int
    tile_cols: int
    chunks: int
    height: int
    width: int
    first_h: int
    first_w: int
    row_step: int
    col_step: int
    reach_rows: int
    image_rows: int
    slab_cols: int
    phase_cols: int
    pitch: int
    plane: int
    images: int
    positions: int
    def prepare(self) -> None:
        """To be called when all fields are set."""

class GatherClass:
    """One class of destination pixels of a Gather."""

    slab: Slab
    dest_h: int
    dest_w: int
    blocks: int
    first_segment: int
    first_tile: int

class Gather:
    """A forward or grad-input pass: csrc/cuda/conv/gather.h."""

    class_count: int
    tiles: int
    groups: int
    dest_channels: int
    source_channels: int
    channel_block: int
    row_warps: int
    dest_step_h: int
    dest_step_w: int
    lanes_on_channels: bool
    slab_bytes: int
    blocks_limit: int
    rows: int
    units: int
    transposed: bool
    source_strides: _Strides  # write only
    dest_strides: _Strides  # write only
    def set_class(self, index: int, value: GatherClass, /) -> None: ...

class GradWeight:
    """A grad-weight pass: csrc/cuda/conv/grad_weight.h."""

    slab: Slab
    groups: int
    dest_channels: int
    source_channels: int
    channel_block: int
    blocks: int
    row_block: int
    tiles: int
    splits: int
    tiles_per_split: int
    lanes_on_channels: bool
    slab_bytes: int
    units: int
    source_strides: _Strides  # write only
    grad_strides: _Strides  # write only

class WindowGradWeight:
    """A grad-weight pass by matrix units: csrc/cuda/conv/window_grad_weight.h."""

    slab: Slab
    groups: int
    dest_channels: int
    source_channels: int
    channel_block: int
    blocks: int
    window_block: int
    compute_warps: int
    grad_warps: int
    tile: int
    tiles: int
    splits: int
    tiles_per_split: int
    source_lanes_on_channels: bool
    grad_lanes_on_channels: bool
    slab_bytes: int
    grad_plane: int
    source_strides: _Strides  # write only
    grad_strides: _Strides  # write only
    @property
    def shared_bytes(self) -> int: ...

class Direct:
    """A pass without slabs: csrc/cuda/conv/direct.h."""

    images: int
    height: int
    width: int
    rows: int
    cols: int
    dest_h: int
    dest_w: int
    dest_step_h: int
    dest_step_w: int
    row_step: int
    col_step: int
    groups: int
    dest_channels: int
    source_channels: int
    first_segment: int
    source_strides: _Strides  # write only
    dest_strides: _Strides  # write only

def arrange(
    queue: _Queue,
    entries: int,
    offsets: _Address,  # [entries] int32
    value_index: _Address,  # [entries] int32
    values: _Address,  # [nnz] float32
    list: _Address,  # [entries, 2] of 4 bytes, written
) -> None: ...
def gather(
    queue: _Queue,
    pass_: Gather,
    dtype: str,  # of the activations
    source: _Address,
    list: _Address,  # from arrange
    bounds: _Address,  # [segments, 2] int32
    bias: _Address,  # or 0
    dest: _Address,
    /,
) -> None: ...
def grad_weight(
    queue: _Queue,
    pass_: GradWeight,
    entries: int,
    dtype: str,
    source: _Address,
    grad: _Address,
    offsets: _Address,
    value_index: _Address,
    bounds: _Address,
    partial: _Address,  # [splits, entries] float32
    grad_values: _Address,  # [nnz] float32, written
    /,
) -> None: ...
def use_exchange_api(capsule: object) -> bool:
    """As dsr_kernels._C.use_exchange_api, for this module."""

# entries, and addresses of offsets, value_index and bounds: what outlives the call
_List = tuple[int, _Address, _Address, _Address]

class GatherCall:
    """A forward pass, or a grad-input: all of its launches. csrc/bindings/cuda/calls.cpp.

    Raises TypeError for a tensor without memory.
    """

    def __init__(self, launches: Sequence[Gather], dtype: str, list: _List) -> None: ...
    def run(
        self,
        device: int,
        stream: int,
        source: _Tensor,  # [N, C, H, W]
        values: _Tensor,  # [nnz]
        bias: _Tensor,  # [O]
        dest: _Tensor,  # [N, O, P, Q], written
        workspace: _Tensor,  # [entries, 2] int32, written
        /,
    ) -> None: ...

class GradWeightCall:
    """The gradient of the values: as GatherCall."""

    def __init__(self, launch: GradWeight, dtype: str, list: _List) -> None: ...
    def run(
        self,
        device: int,
        stream: int,
        source: _Tensor,  # [N, C, H, W]
        grad: _Tensor,  # [N, O, P, Q]
        grad_values: _Tensor,  # [nnz], written
        partial: _Tensor,  # [splits, entries], written
        /,
    ) -> None: ...

def direct_gather(
    queue: _Queue,
    pass_: Direct,
    dtype: str,
    source: _Address,
    entries: _Address,  # [nnz, 4] int32
    bounds: _Address,
    values: _Address,
    bias: _Address,  # or 0
    dest: _Address,
    /,
) -> None: ...
def direct_grad_weight(
    queue: _Queue,
    pass_: Direct,
    dtype: str,
    source: _Address,
    grad: _Address,
    nnz: int,
    entries: _Address,
    bounds: _Address,
    grad_values: _Address,
    /,
) -> None: ...
def fused_gather(
    queue: _Queue,
    pass_: Gather,
    dtype: str,
    source: _Address,
    list: _Address,
    bounds: _Address,
    bias: _Address,  # or 0
    dest: _Address,
    source_map: _SourceMap,
    dest_map: _DestMap,
    /,
) -> None:
    """As gather, with what csrc/cuda/conv/fused.h has done on the way in and on the way out."""

def fused_grad_weight(
    queue: _Queue,
    pass_: GradWeight,
    entries: int,
    dtype: str,
    source: _Address,
    grad: _Address,
    offsets: _Address,
    value_index: _Address,
    bounds: _Address,
    partial: _Address,
    grad_values: _Address,
    source_map: _SourceMap,
    grad_map: _SourceMap,
    /,
) -> None: ...
def window_gather(
    queue: _Queue,
    pass_: Gather,
    list: _WindowList,
    dtype: str,
    source: _Address,
    values: _Address,  # [nnz] float32
    bias: _Address,  # or 0
    dest: _Address,
    maps: tuple[_SourceMap, _DestMap] | None,
    /,
) -> None:
    """As gather or, with maps, fused_gather: csrc/cuda/conv/window_gather.h."""

def window_grad_weight(
    queue: _Queue,
    pass_: WindowGradWeight,
    list: _WindowList,
    dtype: str,
    source: _Address,
    grad: _Address,
    partial: _Address,  # [splits, nnz] float32
    grad_values: _Address,  # [nnz] float32, written
    maps: tuple[_SourceMap, _SourceMap] | None,  # of source and gradient
    /,
) -> None: ...
def combine_parts(
    queue: _Queue,
    moments: bool,
    channels: int,
    parts: int,
    partial: _Address,  # [3 or 2, channels, parts] float32
    first: _Address,  # [channels] float32, written
    second: _Address,  # [channels] float32, written
    /,
) -> None:
    """Sums of the parts or, where `moments`, mean and variance."""

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
