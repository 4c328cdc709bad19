"""The compiled core: convolutions and rewires on the CPU.

It is built without torch. It takes the addresses of tensors, as `Tensor.data_ptr()` gives them, or
the tensors themselves, and the caller keeps those until a call is over, or until it is done with a
RewirePlan. Every function raises ValueError for what it refuses, but where something else is said.
"""

from collections.abc import Sequence
from typing import TypedDict, type_check_only

from torch import Tensor

_Address = int
_Pair = Sequence[int]  # of two: rows, columns
_Quad = Sequence[int]  # of four: n, c, h, w
# (address, whether it holds bfloat16 beside float32 values, element strides)
_Activation = tuple[_Address, bool, _Quad]

@type_check_only
class PlanDescription(TypedDict):
    """How a pass is carried out; sizes in elements, tiles in rows x columns of vectors."""

    lanes: str  # what fills a vector: "plane", "row" or "batch"; or "matrix"
    lane_images: int
    images: int
    band_rows: int
    bands: int
    tile_rows: int
    tile_cols: int
    strip_cols: int
    destination_block: int
    channel_block: int
    blocks: int
    block_rows: int  # rows of the pattern that the inner loops take at once
    phases: int
    classes: int
    class_rows: int
    class_cols: int
    image_rows: int
    pitch: int
    plane: int
    packed_elements: int
    cycles_per_fma: float

class ConvPlan:
    """What forward and grad-weight, or grad-input, derive from a pattern and the sizes of images.

    csrc/cpu/conv/conv_plan.h. It copies what it needs of the pattern. Several threads may use it.
    """

    def __init__(
        self,
        out_channels: int,
        in_channels: int,
        height: int,  # of the input
        width: int,
        kernel: _Pair,
        stride: _Pair,
        padding: _Pair,  # top, left
        out_size: _Pair,
        dilation: _Pair,
        groups: int,
        crow: _Address,  # [out_channels // block_size + 1] int32
        col: _Address,  # [blocks] int32
        blocks: int,
        dtype: str,  # of the values: "float32" or "float64"
        lanes: str = "plane",
        transposed: bool = False,  # for grad-input
        block_size: int = 1,  # consecutive output channels that share their positions
    ) -> None: ...
    @property
    def bytes(self) -> int: ...
    def describe(self) -> PlanDescription: ...
    def workspace_bytes(self, op: str, n: int, threads: int, sums: bool = False) -> int:
        """Bytes that `op` ("forward", "grad_input" or "grad_weight") of n images needs.

        `sums` says whether a fused call is to fill sums of channels.
        """

    def sparse_conv2d(
        self,
        n: int,
        x: _Activation,  # [N, C, H, W]
        values: _Address,  # [nnz]
        bias: _Address,  # [O], or 0
        y: _Activation,  # [N, O, P, Q], written
        threads: int,
        workspace: _Address,
    ) -> None: ...
    def sparse_conv2d_grad_input(
        self,
        n: int,
        grad_y: _Activation,  # [N, O, P, Q]
        values: _Address,  # [nnz]
        grad_x: _Activation,  # [N, C, H, W], written
        threads: int,
        workspace: _Address,
    ) -> None: ...
    def sparse_conv2d_grad_weight(
        self,
        n: int,
        x: _Activation,  # [N, C, H, W]
        grad_y: _Activation,  # [N, O, P, Q]
        grad_values: _Address,  # [nnz], written
        threads: int,
        workspace: _Address,
    ) -> None: ...

_Affine = tuple[_Address, _Address, _Address]  # center, scale, shift [C]; 0: absent
_Operand = tuple[_Activation, _Affine, bool, _Address]  # then ReLU, and what is added (or 0)
# affine, ReLU, what is added, x (0: an output is stored), the two results [C]; 0: absent
_Finish = tuple[_Affine, bool, _Address, _Address, tuple[_Address, _Address]]

def sparse_conv2d_fused(
    plan: ConvPlan,
    n: int,
    x: _Operand,  # [N, C, H, W]; of a transposed plan, the gradient of y
    values: _Address,  # [nnz]
    bias: _Address,  # [O], or 0
    y: _Activation,  # [N, O, P, Q], written; of a transposed plan, the gradient of x
    finish: _Finish,
    threads: int,
    workspace: _Address,
) -> None:
    """csrc/cpu/conv/fused.h says what an operand and a finish do."""

def sparse_conv2d_fused_grad_weight(
    plan: ConvPlan,
    n: int,
    x: _Operand,
    grad_y: _Operand,
    grad_values: _Address,  # [nnz], written
    threads: int,
    workspace: _Address,
) -> None: ...

# Whether an activation holds bfloat16 beside float32 values, and its element strides
_Format = tuple[bool, _Quad]
# A tensor, None for absent, or an address
_Tensor = Tensor | int | None

def use_exchange_api(capsule: object) -> bool:
    """Has tensors read by the functions of torch.Tensor.__dlpack_c_exchange_api__.

    Until then, addresses alone are taken. False where they are of a version that is not known.
    """

class Look:
    """What tensors look like (dtypes, devices, sizes, strides), or None for absent.

    csrc/bindings/tensors.h. Raises TypeError for what has no memory.
    """

    def __init__(self, *tensors: Tensor | None) -> None: ...
    def fits(self, *tensors: Tensor | None) -> bool:
        """Whether these look the same."""

class Forward:
    """y = relu(conv2d(pad(z), W) * scale + bias + residual), and its moments, of one look.

    csrc/bindings/calls.cpp. It believes what it is told: backends/cpu_calls.py checks. Raises
    TypeError for a tensor without memory.
    """

    def __init__(self, plan: ConvPlan, n: int, x: _Format, y: _Format, threads: int) -> None: ...
    def run(
        self,
        out: _Tensor,  # [N, O, P, Q], written
        x: _Tensor,  # [N, C, H, W]
        values: _Tensor,  # [nnz]
        bias: _Tensor,  # [O]
        workspace: _Tensor,
        /,
    ) -> None: ...
    def run_fused(
        self,
        out: _Tensor,  # [N, O, P, Q], written
        x: _Tensor,  # [N, C, H, W]
        values: _Tensor,  # [nnz]
        bias: _Tensor,  # [O]
        center: _Tensor,  # [C], as are scale and shift
        scale: _Tensor,
        shift: _Tensor,
        relu: bool,
        residual: _Tensor,  # [N, O, P, Q]
        mean: _Tensor,  # [O], written, as is the variance
        variance: _Tensor,
        out_scale: _Tensor,  # [O]
        out_relu: bool,
        workspace: _Tensor,
        /,
    ) -> None: ...

class Backward:
    """The gradients of x and of the values, of one look: see Forward."""

    def __init__(
        self,
        transposed: ConvPlan,
        forward: ConvPlan,
        n: int,
        grad: _Format,
        out: _Format,
        x: _Format,
        threads: int,
    ) -> None: ...
    def run(
        self,
        grad_x: _Tensor,  # [N, C, H, W], written
        grad_values: _Tensor,  # [nnz], written
        grad_y: _Tensor,  # [N, O, P, Q]
        values: _Tensor,  # [nnz]
        x: _Tensor,  # [N, C, H, W]
        workspace: _Tensor,
        /,
    ) -> None: ...
    def run_fused(
        self,
        grad_x: _Tensor,  # [N, C, H, W], written
        grad_values: _Tensor,  # [nnz], written
        grad_y: _Tensor,  # [N, O, P, Q]
        values: _Tensor,  # [nnz]
        x: _Tensor,  # [N, C, H, W]
        center: _Tensor,  # [C], as are scale and shift
        scale: _Tensor,
        shift: _Tensor,
        relu: bool,
        passed: _Tensor,  # [N, C, H, W]
        grad_scale: _Tensor,  # [C], written, as is grad_shift
        grad_shift: _Tensor,
        y: _Tensor,  # [N, O, P, Q]
        y_center: _Tensor,  # [O], as are y_scale and y_shift
        y_scale: _Tensor,
        y_shift: _Tensor,
        workspace: _Tensor,
        /,
    ) -> None: ...

class GradWeight:
    """The gradient of the values alone, of one look: see Forward."""

    def __init__(self, plan: ConvPlan, n: int, x: _Format, grad: _Format, threads: int) -> None: ...
    def run(
        self,
        grad_values: _Tensor,  # [nnz], written
        x: _Tensor,  # [N, C, H, W]
        grad_y: _Tensor,  # [N, O, P, Q]
        workspace: _Tensor,
        /,
    ) -> None: ...

def choose_lanes(
    n: int,  # images
    contiguous_rows: bool,  # of both activations
    width: int,  # of the input
    out_width: int,
    kernel: _Pair,
    stride: _Pair,
    padding: _Pair,  # top, left
    dilation: _Pair,
    dtype: str,
    block_size: int = 1,
    bfloat16: bool = False,  # both activations
) -> str:
    """What should fill the lanes of a vector: "plane", "row" or "batch"; or "matrix"."""

def lanes_reason(
    n: int,
    contiguous_rows: bool,
    width: int,
    out_width: int,
    kernel: _Pair,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
    dtype: str,
    block_size: int = 1,
    bfloat16: bool = False,  # both activations
) -> str:
    """Why choose_lanes chooses as it does, in words."""

def sparse_conv2d_grad_bias(
    dtype: str,
    size: _Quad,
    x: _Address,
    x_strides: _Quad,
    out: _Address,
    threads: int,
    workspace: _Address,
) -> None:
    """out [C] = x [N, C, H, W] summed over N, H, W."""

def sparse_conv2d_grad_bias_workspace(n: int, channels: int) -> int:
    """Bytes of workspace that sparse_conv2d_grad_bias needs."""

_Size = Sequence[int]  # n, channels, pixels

# Elementwise passes, csrc/cpu/elementwise. `element` is what activations are stored as: "float32",
# "float64" or "bfloat16". All of a call are dense, [N, C, pixels] or [N, pixels, C]. Numbers of
# channels are float64 beside float64 activations, else float32.

def channel_sums_workspace(size: _Size, channels_last: bool, sums: int) -> int:
    """Bytes of workspace for that many sums per channel."""

def channel_moments(
    element: str,
    size: _Size,
    channels_last: bool,
    x: _Address,
    mean: _Address,  # [C], written
    variance: _Address,  # [C], written
    threads: int,
    workspace: _Address,  # of 2 sums
) -> None: ...
def channel_affine(
    element: str,
    size: _Size,
    channels_last: bool,
    x: _Address,
    by: _Affine,
    relu: bool,
    other: _Address,  # or 0
    other_by: _Affine,
    out: _Address,  # written
    threads: int,
) -> None: ...
def channel_affine_grad(
    element: str,
    size: _Size,
    channels_last: bool,
    grad: _Address,
    x: _Address,
    by: _Affine,
    relu: bool,
    other: _Address,  # or 0; only with other_by
    other_by: _Affine,
    out: _Address,  # or 0; only with ReLU and without other
    grad_x: _Address,  # written
    grad_other: _Address,  # written where other or out is given
    sums: _Address,  # [3, C] with other, else [2, C], written
    threads: int,
    workspace: _Address,  # of as many sums
) -> None: ...
def isa() -> str:
    """The instruction set in use, such as "avx512"."""

def available_isas() -> list[str]:
    """Those that this build has and this processor can run."""

def set_isa(name: str, /) -> None: ...
def peak_gflops(threads: int, seconds: float = 0.1) -> float:
    """float32 multiply-adds from registers, measured for `seconds` with the active instructions."""

def sample_pattern(
    rows: int, row_length: int, nnz: int, seed: int, crow: _Address, col: _Address
) -> None:
    """Fills crow [rows + 1] and col [nnz] (int32) with distinct uniform positions, sorted."""

# name, rows, row_length, nnz, crow, col, scores, dtype, number of its random stream
_Layer = tuple[str, int, int, int, _Address, _Address, _Address, str, int]
# crow, col, [(from, to, bytes of an item) of each array], ranks: where growth goes, 0: at random
_Output = tuple[_Address, _Address, Sequence[tuple[_Address, _Address, int]], _Address]

@type_check_only
class _Decisions:
    """What the rewire plans of all backends share: csrc/bindings/rewire_plan.h."""

    def prune_below(self, threshold: float) -> None: ...
    def prune_smallest(self, count: int, regrown: bool = True) -> None: ...
    def prune_smallest_each(self, counts: Sequence[int]) -> None: ...
    def grow(self, grown: Sequence[int]) -> None: ...
    def grow_proportionally(self) -> None: ...
    def apply(self, seed: int, step: int, outputs: Sequence[_Output]) -> None: ...
    @property
    def prunable(self) -> int: ...
    @property
    def below(self) -> int: ...
    @property
    def total_capacity(self) -> int: ...
    @property
    def threshold(self) -> float: ...
    # One entry per layer.
    @property
    def thresholds(self) -> list[float]: ...
    @property
    def below_each(self) -> list[int]: ...
    @property
    def nnz(self) -> list[int]: ...
    @property
    def capacity(self) -> list[int]: ...
    @property
    def pruned(self) -> list[int]: ...
    @property
    def grown(self) -> list[int]: ...
    @property
    def nnz_after(self) -> list[int]: ...

class RewirePlan(_Decisions):
    """One rewire of several layers: opened, decided on, applied; csrc/cpu/rewire/rewire.h."""

    def __init__(self, layers: Sequence[_Layer], threads: int, keep: object = None) -> None:
        """`keep` lives as long as the plan: the tensors whose addresses it has."""

def long_rows(pixels: int) -> tuple[int, int]:
    """(height, width) of the same pixels in rows of some ten vectors, or in a single row."""

# For the tests of the random numbers.
def _philox(counter: Sequence[int], key: int, /) -> list[int]: ...
def _feistel(n: int, seed: int, step: int, layer: int, points: Sequence[int], /) -> list[int]: ...
