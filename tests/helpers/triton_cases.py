"""The Triton fallback against the reference; test_triton.py runs this file.

Under TRITON_INTERPRET=1 on CPU tensors (numpy stands in for the GPU), otherwise on a GPU.
"""

from __future__ import annotations

import gc
import os

import pytest
import torch
from helpers.nn_cases import within_rule
from helpers.prepared import keep_no_calls
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from dsr_kernels.backends import dispatch
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.backends.triton import launch
from dsr_kernels.nn import functional
from dsr_kernels.ops import library, reference
from dsr_kernels.topology import Topology

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
EXACT = torch.float64
DTYPES = (
    torch.float16,
    torch.float64,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter gets bfloat16 wrong"),
    ),
)
NONE, ONE = (0, 0, 0, 0), (1, 1)

# Input size, weight shape, stride, padding, dilation, groups, non-zeros.
CASES = {
    "odd sizes": ((3, 5, 7, 5), (4, 5, 3, 3), ONE, (1, 1, 1, 1), ONE, 1, 16),
    "everything": ((2, 6, 5, 4), (4, 3, 3, 2), (2, 1), (1, 0, 1, 2), (1, 2), 2, 20),
    "no padding": ((2, 4, 5, 6), (3, 4, 2, 3), ONE, NONE, ONE, 1, 14),
    "one image, stride 2": ((1, 3, 8, 9), (5, 3, 3, 3), (2, 2), (1, 1, 1, 1), ONE, 1, 20),
    "stride beyond the kernel": ((2, 3, 7, 8), (4, 3, 1, 2), (3, 4), NONE, ONE, 1, 9),
    "stride beyond the image": ((2, 3, 3, 4), (4, 3, 1, 1), (9, 9), NONE, ONE, 1, 7),
    "stride and dilation": ((2, 3, 8, 9), (4, 3, 3, 2), (2, 3), (2, 1, 0, 1), (3, 2), 1, 12),
    "kernel beyond the image": ((2, 3, 3, 2), (4, 3, 5, 5), ONE, (2, 3, 2, 2), ONE, 1, 30),
    "pointwise": ((3, 7, 5, 3), (6, 7, 1, 1), ONE, NONE, ONE, 1, 15),
    "pointwise, groups, stride 2": ((3, 6, 5, 4), (8, 3, 1, 1), (2, 2), NONE, ONE, 2, 15),
    "depthwise": ((2, 5, 4, 5), (5, 1, 3, 3), ONE, (1, 1, 1, 1), ONE, 5, 20),
    "empty rows": ((2, 3, 4, 5), (12, 3, 3, 3), ONE, (1, 1, 1, 1), ONE, 1, 5),
    "full": ((2, 2, 4, 5), (2, 2, 2, 2), ONE, (1, 0, 0, 1), ONE, 1, 16),
    "few non-zeros": ((1, 2, 3, 3), (2, 2, 2, 2), (2, 1), (1, 0, 0, 1), ONE, 1, 5),
    "no non-zeros": ((2, 3, 4, 5), (4, 3, 3, 3), ONE, NONE, ONE, 1, 0),
    "no images": ((0, 3, 4, 5), (4, 3, 3, 3), ONE, NONE, ONE, 1, 9),
    "taps that meet only padding": ((2, 3, 3, 4), (4, 3, 3, 2), ONE, (9, 9, 0, 0), (9, 1), 1, 30),
    "outputs that meet only padding": (
        (2, 3, 2, 3),
        (4, 3, 2, 1),
        (1, 2),
        (25, 25, 9, 9),
        (25, 1),
        1,
        20,
    ),
    "no tap meets the image": ((2, 3, 3, 4), (4, 3, 2, 2), ONE, (6, 6, 1, 1), (12, 1), 1, 20),
    "linear": ((19, 11, 1, 1), (7, 11, 1, 1), ONE, NONE, ONE, 1, 25),
}


@pytest.fixture(autouse=True)
def use_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton for every device, the work in pieces small enough for several of each kind."""
    monkeypatch.setattr(dispatch, "gpu_backend", lambda device: launch)
    monkeypatch.setattr(library, "cpu", launch)
    keep_no_calls(monkeypatch)
    monkeypatch.setattr(launch, "POSITIONS", (32,))
    monkeypatch.setattr(launch, "LANES", 16)
    patterns.clear()


def problem(
    name: str, dtype: torch.dtype = torch.float32, seed: int = 0, block_size: int = 1
) -> tuple:
    """With a block size, of as many times the output channels and non-zeros."""
    size, (rows, *rest), *shape, nnz = CASES[name]
    weight_shape, nnz = (rows * block_size, *rest), nnz * block_size
    generator = torch.Generator().manual_seed(seed)
    options = {"block_size": block_size, "generator": generator}
    topology = Topology.random(weight_shape, nnz, **options).to(DEVICE)
    weights = EXACT if dtype == EXACT else torch.float32
    x, values, bias = (torch.randn(s, generator=generator) for s in (size, nnz, weight_shape[0]))
    tensors = x.to(DEVICE, dtype), values.to(DEVICE, weights), bias.to(DEVICE, weights)
    return *tensors, topology.crow_indices, topology.col_indices, weight_shape, *shape


def results(conv, x: Tensor, values: Tensor, bias: Tensor, *rest, grad=None) -> list[Tensor]:
    """y and the gradients of x, values and bias; `grad` of y is made from y's shape if absent."""
    inputs = [t.detach().requires_grad_() for t in (x, values, bias)]
    y = conv(*inputs, *rest)
    if grad is None:
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad(y, inputs, grad.to(y))]


def check(x: Tensor, values: Tensor, bias: Tensor, *rest, grad: Tensor | None = None) -> None:
    ours = results(functional.sparse_conv2d, x, values, bias, *rest, grad=grad)
    same, exact = (
        results(reference.sparse_conv2d, *(t.to(d) for t in (x, values, bias)), *rest, grad=grad)
        for d in (x.dtype, EXACT)
    )
    for name, *result in zip(("y", "gx", "gvalues", "gbias"), ours, same, exact, strict=True):
        assert within_rule(*result), name
        assert result[0].dtype == (x.dtype if name in ("y", "gx") else values.dtype), name


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name: str) -> None:
    check(*problem(name))


@pytest.mark.parametrize("name", CASES)
def test_blocks_agree_with_the_reference(name: str) -> None:
    check(*problem(name, block_size=4))


def test_values_as_layers_hold_them_and_plans_made_once() -> None:
    x, values, bias, *rest = problem("everything", block_size=4)
    check(x, values.view(-1, 4), bias, *rest)
    before = [id(plan) for plan in patterns.plans()]
    check(x, values, bias, *rest)
    assert [id(plan) for plan in patterns.plans()] == before


def test_a_pattern_of_no_blocks_is_refused() -> None:
    x, values, bias, crow, col, *rest = problem("pointwise", block_size=4)
    with pytest.raises(ValueError, match=r"col_indices: expected columns in \[0, 7\)"):
        functional.sparse_conv2d(x, values, bias, crow, col + 3, *rest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["everything", "linear"])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    check(*problem(name, dtype))


@pytest.mark.parametrize("name", ["one image, stride 2", "pointwise", "linear"])
def test_the_work_cut_as_it_is_for_large_problems(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for constant, value in (("POSITIONS", (512, 256, 128)), ("LANES", 128), ("PROGRAMS", 4)):
        monkeypatch.setattr(launch, constant, value)
    check(*problem(name))


def test_offsets_of_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_reach", lambda *_: 2**40)
    check(*problem("everything"))


@pytest.mark.skipif(INTERPRETED, reason="takes 5 GB")
def test_offsets_beyond_32_bits() -> None:
    x, *rest = problem("everything", torch.float16)
    memory = torch.empty(5 * 2**29, dtype=torch.float16, device=DEVICE)
    check(memory.as_strided(x.shape, (20, 2**29 - 100, 4, 1)).copy_(x), *rest)


FORMATS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: x.repeat_interleave(2, 3)[:, :, :, ::2],
    "one image for all": lambda x: x[:1].expand(x.shape),
    "one column for all": lambda x: x[:, :, :, :1].expand(x.shape),
}


@pytest.mark.parametrize("name", FORMATS)
def test_memory_formats(name: str) -> None:
    x, *rest = problem("everything")
    x = FORMATS[name](x)
    y = functional.sparse_conv2d(x, *rest)
    assert y.is_contiguous(memory_format=torch.channels_last) == (name == "channels_last")
    grad = FORMATS[name](torch.randn(y.shape, device=DEVICE))
    check(x, *rest, grad=grad)


@pytest.mark.parametrize("name", ["everything", "linear"])
def test_kernels_see_neighbouring_positions_as_neighbours_in_memory(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, *rest = problem(name)
    run, seen = launch._run, []
    monkeypatch.setattr(
        launch,
        "_run",
        lambda *args, **constants: (seen.append(args), run(*args, **constants)),
    )
    check(FORMATS["channels_last"](x), *rest)
    activations = [t for args in seen for t in args if isinstance(t, Tensor) and t.dim() == 4]
    assert len(activations) == 6  # two of each op
    assert all(t.stride(0 if name == "linear" else 3) == 1 for t in activations)


def test_without_images_the_gradient_is_zero() -> None:
    x, values, _, crow, col, *shape = problem("no images")
    y = torch.empty(0, 4, 2, 3, device=DEVICE)
    ones = torch.ones_like(values)
    gvalues = launch.sparse_conv2d_grad_weight(ones, x, y, crow, col, ConvShape(*shape))
    assert not gvalues.any()


def test_without_bias_and_with_values_in_strides() -> None:
    x, values, _, *rest = problem("odd sizes")
    spread = values.repeat_interleave(2)[::2]
    y = functional.sparse_conv2d(x, spread, None, *rest)
    exact = reference.sparse_conv2d(x.to(EXACT), values.to(EXACT), None, *rest)
    torch.testing.assert_close(y, exact.float())


def test_a_linear_layer() -> None:
    topology = Topology.random((7, 11), 25, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    pattern = topology.crow_indices, topology.col_indices, (7, 11)
    x, values, bias = (torch.randn(s, device=DEVICE) for s in ((3, 5, 11), 25, 7))
    ours = results(functional.sparse_linear, x, values, bias, *pattern)
    expected = results(reference.sparse_linear, x, values, bias, *pattern)
    for ours_, expected_ in zip(ours, expected, strict=True):
        torch.testing.assert_close(ours_, expected_)


def test_gradcheck_to_second_order() -> None:
    x, values, bias, crow, col, *shape = problem("few non-zeros", EXACT)
    inputs = [t.requires_grad_() for t in (x, values, bias)]

    def conv(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return functional.sparse_conv2d(x, values, bias, crow, col, *shape)

    assert gradcheck(conv, inputs, fast_mode=True)
    assert gradgradcheck(conv, inputs, fast_mode=True)


def test_plans_are_built_once_per_pattern() -> None:
    x, *rest = problem("pointwise")
    results(functional.sparse_conv2d, x, *rest)
    before = [id(plan) for plan in patterns.plans()]
    assert len(before) == 3  # the check, the transpose, the blocks of non-zeros
    assert sum(plan.bytes for plan in patterns.plans()) > 0
    results(functional.sparse_conv2d, x[:2, :, :4], *rest)
    assert [id(plan) for plan in patterns.plans()] == before


def test_a_pattern_written_in_place_gets_new_plans() -> None:
    before, other = problem("pointwise"), problem("pointwise", seed=3)
    check(*before)
    for index, new in zip(before[3:5], other[3:5], strict=True):
        assert not torch.equal(index, new)
        index.copy_(new)
    check(*before)


def test_plans_of_dead_patterns_are_dropped() -> None:
    for seed in range(3):
        results(functional.sparse_conv2d, *problem("pointwise", seed=seed))
    gc.collect()
    last = problem("linear")
    functional.sparse_conv2d(*last)
    assert len(patterns.plans()) == 1


@pytest.mark.parametrize("passed", ["forward", "grad_input", "grad_weight"])
def test_patterns_that_lead_out_of_bounds_are_refused(passed: str) -> None:
    x, values, bias, crow, col, *fields = problem("pointwise")
    shape = ConvShape(*fields)
    col = torch.cat([col[:-1], col[-1:] + 10_000])
    y = torch.empty(3, 6, 5, 3, device=DEVICE)
    with pytest.raises(ValueError, match=r"col_indices: expected columns in \[0, 7\)"):
        if passed == "forward":
            launch.sparse_conv2d(y, x, values, bias, crow, col, shape)
        elif passed == "grad_input":
            launch.sparse_conv2d_grad_input(x, y, values, crow, col, shape)
        else:
            launch.sparse_conv2d_grad_weight(values, x, y, crow, col, shape)
