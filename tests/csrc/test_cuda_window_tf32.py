"""float32 by the GPU's matrix units, as TF32: how operands are rounded, and who asks for it."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from helpers import cuda_fused_cases
from helpers.cuda_conv_cases import (
    EMULATED_GPU,
    conv_and_input,
    direct,
    forward_and_grad_input,
    gpu_kernels,
)
from helpers.cuda_device import DEVICE, EMULATED
from helpers.cuda_planner import (
    BANKS,
    COMPUTE_WARPS,
    VECTOR_BYTES,
    choose_window_gather,
    forward_shape,
    list_key,
    window_grad_weight_tilings,
)
from helpers.cuda_window_cases import model
from helpers.cuda_window_grad_cases import windows
from helpers.formats import gradient_of
from helpers.matrix_units import as_operand, to_tf32
from helpers.nn_cases import same_bits

from dsr_kernels import SparseConv2d, SparseLinear
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cuda import plans, tensor_cores
from dsr_kernels.backends.cuda.window_lists import build_windows
from dsr_kernels.topology import Topology

LAYER = (20, 40, 3, (5, 8), 9), {"padding": 1}
NEWER = hasattr(torch.backends.cudnn, "conv")  # torch 2.9


def cheapest(*sizes):
    return min(window_grad_weight_tilings(*sizes), key=lambda t: t.clocks, default=None)


@pytest.fixture
def flags():
    """torch's, restored: by the older names, and then by the newer ones, which say more."""
    backends = torch.backends
    older = backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32
    settings = [backends.cuda.matmul]
    settings += [backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn] if NEWER else []
    newer = [setting.fp32_precision for setting in settings] if NEWER else []
    yield backends
    backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32 = older
    for setting, precision in zip(settings, newer, strict=False):
        setting.fp32_precision = precision


@pytest.mark.parametrize("size", [1, 4, 16])
def test_operands_are_rounded_to_the_nearest(size: int) -> None:
    """Values, activations and gradients that are no numbers of TF32 count as the nearest ones."""
    sizes, arguments = LAYER
    conv, x = conv_and_input((sizes[0], 48, *sizes[2:]), {**arguments, "block_size": size})
    grad = gradient_of(conv, x)
    rounded = [as_operand(t) for t in (conv.weight_values.detach(), x, grad)]
    assert all((t != r).float().mean() > 0.9 for t, r in zip((x, grad), rounded[1:], strict=True))

    def results(x, grad) -> list[torch.Tensor]:
        with gpu_kernels(None, direct, None, cheapest, model):
            (gvalues,) = torch.autograd.grad(conv(x), conv.weight_values, grad)
            found = forward_and_grad_input(conv, x, grad)
        conv.requires_grad_()
        return [*found, gvalues]

    found = results(x, grad)
    conv.weight_values.data.copy_(rounded[0])
    assert same_bits(results(*rounded[1:]), found)


def test_ties_are_rounded_away_from_zero() -> None:
    """What lies halfway between two numbers of TF32; to even, the first would become 1."""
    halfway = torch.tensor([1 + 2.0**-11, 1 + 3 * 2.0**-11, -(1 + 2.0**-11)])
    expected = torch.tensor([1 + 2.0**-10, 1 + 2 * 2.0**-10, -(1 + 2.0**-10)])
    assert torch.equal(to_tf32(halfway), expected)
    conv = SparseConv2d(1, 8, 1, bias=False, sparsity=0.0).to(DEVICE)
    conv.weight_values.data.fill_(1)
    with gpu_kernels(window_gather=model), torch.no_grad():
        y = conv(halfway.view(3, 1, 1, 1).expand(3, 1, 2, 2).to(DEVICE))
        conv.weight_values.data.copy_(halfway.repeat(3)[:8, None].view_as(conv.weight_values))
        by_values = conv(torch.ones(1, 1, 2, 2, device=DEVICE))
    assert torch.equal(y[:, 0, 0, 0].cpu(), expected)
    assert torch.equal(by_values[0, :, 0, 0].cpu(), expected.repeat(3)[:8])


def test_numbers_at_the_ends_of_the_range() -> None:
    """Subnormal ones are rounded as others; the largest ones may become infinite."""
    tiny = 2.0**-149 * 3 * 2**12  # a tie
    ends = torch.tensor([tiny, torch.finfo(torch.float32).max, torch.inf])
    conv = SparseConv2d(1, 8, 1, bias=False, sparsity=0.0).to(DEVICE)
    conv.weight_values.data.fill_(1)
    with gpu_kernels(window_gather=model), torch.no_grad():
        y = conv(ends.view(3, 1, 1, 1).expand(3, 1, 2, 2).to(DEVICE))[:, 0, 0, 0].cpu()
    assert y[0] == 2.0**-149 * 2**14 or not EMULATED
    assert not y[1:].isfinite().any()


# ---- who asks for it ----------------------------------------------------------------------------


def passes(conv, x) -> list[bool]:
    """Which of forward and grad-weight the planner would give to windows."""
    rows = conv.weight_shape[0]
    shape = cuda_fused_cases.shape_of(conv)
    sizes = tuple(x.shape), (x.shape[0], rows, *x.shape[2:]), shape
    strides = x.stride(), torch.empty(sizes[1]).stride()
    where = 0.1, 16, x.dtype, *strides, EMULATED_GPU, tensor_cores.allowed(x, shape)
    kinds = ("forward", "grad_weight")
    return [plans.plan_of(d, *sizes, *where).kind == "window" for d in kinds]


def test_convolutions_follow_cudnns_flag_from_call_to_call(flags) -> None:
    conv, x = conv_and_input((64, 64, 3, (16, 16), 8), {"padding": 1, "block_size": 16})
    by_the_model = gpu_kernels(window_gather=None, window_grad_weight=None)
    with by_the_model, pytest.MonkeyPatch.context() as patch:
        for _ in range(2):
            flags.cudnn.allow_tf32 = False
            assert passes(conv, x) == [False, False]
            assert passes(conv, x.bfloat16()) == [True, True]
            flags.cudnn.allow_tf32 = True
            assert passes(conv, x) == [True, True]
        flags.cuda.matmul.allow_tf32 = not flags.cuda.matmul.allow_tf32
        assert passes(conv, x) == [True, True]
        patch.setenv(tensor_cores.SWITCH, "0")
        assert passes(conv, x) == [False, False]


def test_the_flag_decides_what_a_layer_computes(flags) -> None:
    conv, x = conv_and_input(*LAYER)
    with torch.no_grad(), gpu_kernels():
        plain = conv(x)
    with torch.no_grad(), gpu_kernels(window_gather=model):
        rounded = conv(x)
        flags.cudnn.allow_tf32 = False
        assert same_bits([conv(x)], [plain])
        flags.cudnn.allow_tf32 = True
        assert same_bits([conv(x)], [rounded])
    assert not torch.equal(plain, rounded)


def test_linear_layers_need_the_flag_of_matrix_products_too(flags) -> None:
    torch.manual_seed(2)
    layer = SparseLinear(64, 48, sparsity=0.5).to(DEVICE)
    x = torch.randn(40, 64, device=DEVICE)
    exact = torch.nn.functional.linear(x.double(), layer.to_dense().double(), layer.bias.double())
    with torch.no_grad(), gpu_kernels(direct, window_gather=model):
        for allowed in product((False, True), repeat=2):
            flags.cudnn.allow_tf32, flags.cuda.matmul.allow_tf32 = allowed
            error = (layer(x) - exact).abs().max().item()
            assert 1e-5 < error < 1e-2 if all(allowed) else error < 1e-5


def test_convolutions_that_look_like_linear_layers_never_go_beyond_their_own_flag(flags) -> None:
    """A strided one reads one pixel of four; to its grad-input, the gradient is one pixel."""
    conv, x = conv_and_input((64, 48, 1, (2, 2), 40), {"stride": 2})
    shape = cuda_fused_cases.shape_of(conv)
    with windows():
        for matmul in (False, True):
            flags.cudnn.allow_tf32, flags.cuda.matmul.allow_tf32 = False, matmul
            assert not any(tensor_cores.tf32_of(t, shape) for t in (x, x[..., :1, :1]))
        flags.cudnn.allow_tf32 = True
        assert all(tensor_cores.tf32_of(t, shape) for t in (x, x[..., :1, :1]))


@pytest.mark.skipif(not NEWER, reason="torch has no fp32_precision")
def test_torchs_newer_names_of_the_flags(flags) -> None:
    """Also where the older names cannot be read: torch refuses, since the two disagree."""
    allowed = tensor_cores.tf32_allowed
    flags.cudnn.conv.fp32_precision = "ieee"
    assert not allowed(maybe_linear=False)
    flags.cudnn.conv.fp32_precision = "tf32"
    assert allowed(maybe_linear=False)
    flags.cuda.matmul.fp32_precision = "tf32"
    assert allowed(maybe_linear=True)
    flags.cuda.matmul.fp32_precision = "ieee"
    assert not allowed(maybe_linear=True) and allowed(maybe_linear=False)
    flags.cuda.matmul.fp32_precision, flags.cudnn.conv.fp32_precision = "tf32", "ieee"
    assert not allowed(maybe_linear=True)


def test_who_asks_nobody(flags) -> None:
    """Other types, and whoever has not asked for tensor cores."""
    conv, x = conv_and_input(*LAYER)
    shape = cuda_fused_cases.shape_of(conv)
    flags.cudnn.allow_tf32 = True
    with windows():
        assert tensor_cores.tf32_of(x, shape)
        others = [x.to(dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16)]
        assert not any(tensor_cores.tf32_of(other, shape) for other in others)
    assert not tensor_cores.tf32_of(x, shape)


# ---- banks --------------------------------------------------------------------------------------


def wavefronts(vectors: torch.Tensor) -> torch.Tensor:
    """[loads] of a load of such vectors [loads, vectors]: the most in one column of banks."""
    ordered, _ = vectors.sort(1)
    distinct = torch.ones_like(ordered, dtype=torch.bool)
    distinct[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.stack([(distinct & (ordered % BANKS == b)).sum(1) for b in range(BANKS)]).amax(0)


@pytest.mark.parametrize("size, most", [(1, 1.1), (16, 1.5)])
@pytest.mark.parametrize("width", [7, 16])
def test_words_of_a_load_lie_in_different_banks(width: int, size: int, most: float) -> None:
    """4 entries that follow each other, at two positions that are 4 apart."""
    shape = ConvShape((64, 64, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    generator = torch.Generator().manual_seed(1)
    topology = Topology.random(shape.weight_shape, 3680, block_size=size, generator=generator)
    problem = forward_shape((64, width, width), (64, width, width), shape)
    tiling = choose_window_gather(problem, 128, 0.1, size, 4, EMULATED_GPU)
    (layout,) = tiling.layouts
    key = list_key(problem, tiling.channel_block, tiling.layouts)
    with gpu_kernels():
        found = build_windows(topology.crow_indices, topology.col_indices, key)
    entries = found.offsets.view(-1, 4)[: 4 * found.bounds[:, 1].max()] // VECTOR_BYTES
    position = torch.arange(COMPUTE_WARPS // tiling.row_warps * tiling.units)
    vector = position // layout.tile_cols * layout.pitch + position % layout.tile_cols
    pairs = vector.view(-1, 2, 4).transpose(1, 2).reshape(-1, 2)
    loads = entries[:, None, :, None] + pairs[None, :, None, :]
    assert wavefronts(loads.flatten(2).flatten(0, 1)).float().mean() < most
