"""Taps and outputs that meet only padding are left out, and nothing else is."""

from __future__ import annotations

import gc
import itertools
import operator
from collections.abc import Iterator

import pytest
import torch
from helpers.cuda_plan_cases import Conv
from helpers.kernel_cases import ISAS, in_blocks, kernels
from helpers.nn_cases import check_layer, layer, results, swap_pattern
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from dsr_kernels import SparseConv1d
from dsr_kernels.backends import live_taps
from dsr_kernels.backends.live_taps import NEAR, Part, Parts
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.nn import functional
from dsr_kernels.ops import reference
from dsr_kernels.topology import Topology

# ---- which parts there are ----------------------------------------------------------------------


@st.composite
def convolutions(draw) -> Conv:
    """Many of them with dilations and paddings beyond the image."""
    small = st.integers(1, 4)
    kernel, stride = draw(st.tuples(small, small)), draw(st.tuples(small, small))
    dilation = draw(st.tuples(*[st.sampled_from((1, 2, 3, 8, 13, 30))] * 2))
    padding = draw(st.tuples(*[st.sampled_from((0, 1, 2, 5, 13, 21, 40))] * 4))
    size = []
    for k, d, both in zip(kernel, dilation, (sum(padding[:2]), sum(padding[2:])), strict=True):
        least = max(1, d * (k - 1) + 1 - both)
        size.append(draw(st.integers(least, least + 6)))
    return Conv(tuple(size), kernel, stride, padding, dilation)


def parts_of(conv: Conv, transposed: bool) -> Parts | None:
    (_, *size), (_, *out_size), shape = conv.arguments
    return live_taps.parts_of(tuple(size), tuple(out_size), shape, transposed)


def as_conv(part: Part) -> Conv:
    size = tuple(end - first for first, end in part.input)
    shape = part.shape
    return Conv(size, shape.kernel, shape.stride, shape.padding, shape.dilation)


def meetings_of(part: Part) -> Iterator[tuple]:
    """What the part's convolution meets, in the whole one's pixels and taps."""
    (rows, cols), width = part.taps[1:], part.taps.weight_shape[3]
    (top, _), (left, _) = part.output
    (source_top, _), (source_left, _) = part.input
    small = as_conv(part)
    for (p, q), tap, (h, w) in small.meetings():
        row, col = tap // small.kernel[1] + rows[0], tap % small.kernel[1] + cols[0]
        if row in rows and col in cols:
            yield (p + top, q + left), row * width + col, (h + source_top, w + source_left)


def pixels(window) -> set:
    return set(itertools.product(*(range(first, end) for first, end in window)))


@settings(max_examples=400, deadline=None)
@given(convolutions(), st.booleans())
def test_parts_meet_what_the_convolution_meets_and_write_it_once(conv: Conv, transposed) -> None:
    found = parts_of(conv, transposed)
    if found is None:
        return
    expected, written = sorted(conv.meetings()), []
    assert sorted(itertools.chain(*map(meetings_of, found.parts))) == expected
    for part in found.parts:
        small = as_conv(part)
        assert min(small.padding) >= 0
        assert [(0, small.output(axis)) for axis in (0, 1)] == [
            (0, end - first) for first, end in part.output
        ]
        assert parts_of(small, transposed) is None  # the launch of a part is no loop
        written += pixels(part.input if transposed else part.output)
    everything = pixels((0, n) for n in (conv.size if transposed else map(conv.output, (0, 1))))
    assert len(written) == len(set(written)) and set(written) <= everything
    assert found.whole == (set(written) == everything and len(found.parts) == 1)


@settings(max_examples=400, deadline=None)
@given(convolutions(), st.booleans())
def test_what_stays_whole_is_live_for_the_most_part(conv: Conv, transposed: bool) -> None:
    """So that what is packed is in proportion to what is read and written."""
    if parts_of(conv, transposed) is not None:
        return
    met = list(conv.meetings())
    for axis, kernel in enumerate(conv.kernel):
        live = {divmod(tap, conv.kernel[1])[axis] for _, tap, _ in met}
        assert {0, kernel - 1} <= live
        spans = [(y[axis], x[axis]) for y, _, x in met]
        reached = {both[transposed] for both in spans}
        size = conv.size[axis] if transposed else conv.output(axis)
        step = conv.stride[axis] if transposed else 1  # pixels between may be nobody's
        assert size < 2 * (step * len(reached) + kernel * NEAR)


def test_ordinary_convolutions_stay_whole() -> None:
    for size, kernel, stride, d in itertools.product((5, 7, 8, 32, 56), (1, 3, 5), (1, 2), (1, 2)):
        reach = d * (kernel - 1)
        if reach // 2 < size:
            paddings = [reach // 2] + [0] * (reach < size)
            for p in paddings:
                conv = Conv((size,) * 2, (kernel,) * 2, (stride,) * 2, (p,) * 4, (d,) * 2)
                assert parts_of(conv, False) is None and parts_of(conv, True) is None, conv


# ---- what they compute --------------------------------------------------------------------------

# C, O, kernel, (H, W), batch; further arguments.
FAR = 2**30 - 8  # the padded input is barely taken
CASES = {
    "the middle tap alone": ((6, 7, 3, (8, 8), 17), {"padding": 1024, "dilation": 1024}),
    "rows alone": ((6, 7, 3, (8, 7), 5), {"padding": (300, 1), "dilation": (300, 1)}),
    "the largest dilation": ((3, 4, 3, (4, 4), 2), {"padding": FAR, "dilation": FAR}),
    "3 x 3 on one pixel": ((40, 30, 3, (1, 1), 33), {"padding": 1}),
    "7 x 7 on 3 x 3": ((4, 5, 7, (3, 3), 3), {"padding": 3}),
    "parts of a tap each": ((5, 6, 2, (4, 3), 3), {"padding": 25, "dilation": 25}),
    "a row that reaches far": ((3, 4, (4, 1), (9, 2), 3), {"padding": (48, 0), "dilation": (8, 1)}),
    "padded far": ((5, 6, 1, (4, 5), 16), {"padding": (30, 50)}),
    "stride and groups": (
        (6, 9, 3, (5, 7), 16),
        {"padding": (12, 3), "dilation": (12, 2), "stride": (2, 3), "groups": 3},
    ),
    "taps between that meet nothing": ((3, 4, 5, (1, 1), 3), {"padding": 4, "stride": 2}),
    "no tap at all": ((4, 5, 2, (3, 3), 3), {"padding": 6, "dilation": 12}),
    "rows that become empty": (
        (4, 40, 3, (3, 3), 8),
        {"padding": 9, "dilation": 9, "sparsity": 0.9},
    ),
    "no image": ((4, 5, 3, (3, 3), 0), {"padding": 9, "dilation": 9}),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set_and_type(name: str, isa: str) -> None:
    (c, o, kernel, size, n), rest = CASES[name]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        weights = torch.float64 if dtype == torch.float64 else torch.float32
        conv = layer(c, o, kernel, dtype=weights, **{"sparsity": 0.4, **rest})
        x = torch.randn(n, c, *size).to(dtype)
        with kernels(isa):
            check(conv, x)
            check(conv, x.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("name", CASES)
def test_blocks(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (c, o, kernel, image, n), rest = in_blocks(CASES[name], size)
    selected, select = [], live_taps.select
    monkeypatch.setattr(live_taps, "select", lambda *a: selected.append(select(*a)) or selected[-1])
    conv, x = layer(c, o, kernel, **{"sparsity": 0.4, **rest}), torch.randn(n, c, *image)
    check(conv, x)
    rows = conv.out_channels // size
    assert all(one.pattern[0].numel() == rows + 1 for one in selected)
    assert selected or name in ("no tap at all", "no image", "taps between that meet nothing")


def check(conv, x: torch.Tensor) -> None:
    """check_layer, where torch can compute the dense layer: its products stay within 32 bits."""
    if max(conv.dilation) < FAR:
        return check_layer(conv, x)
    middle = layer(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        padding=1024,
        dilation=1024,
        dtype=conv.weight_values.dtype,
        sparsity=0.4,
        block_size=conv.block_size,
    )
    middle.load_state_dict(conv.state_dict())
    grad = torch.randn(*conv(x).shape).to(x.dtype)
    for ours, same in zip(results(conv, x, grad), results(middle, x, grad), strict=True):
        assert torch.equal(ours, same)


@pytest.mark.parametrize("padding", [(30, 0, 1, 9), (0, 30, 9, 2)], ids=str)
def test_padding_of_four_sizes_and_second_derivatives(padding: tuple[int, ...]) -> None:
    weight = (4, 3, 2, 3)
    topology = Topology.random(weight, 40, generator=torch.Generator().manual_seed(1))
    pattern = topology.crow_indices, topology.col_indices
    x, values, bias = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 3, 2), 40, 4)
    )

    def conv(*tensors):
        return functional.sparse_conv2d(*tensors, *pattern, weight, (1, 2), padding, (11, 4), 1)

    expected = reference.sparse_conv2d(
        x, values, bias, *pattern, weight, (1, 2), padding, (11, 4), 1
    )
    torch.testing.assert_close(conv(x, values, bias), expected)
    assert gradcheck(conv, (x, values, bias), fast_mode=True)
    assert gradgradcheck(conv, (x, values, bias), fast_mode=True)


def test_a_sequence() -> None:
    conv = SparseConv1d(5, 6, 3, padding=64, dilation=64, sparsity=0.3)
    check_layer(conv, torch.randn(7, 5, 20))


def test_the_gradient_of_a_dead_tap_is_zero_whatever_is_elsewhere() -> None:
    conv, x = layer(4, 5, 3, padding=9, dilation=9, sparsity=0.2), torch.randn(3, 4, 5, 5)
    grad = torch.full((3, 5, 5, 5), torch.inf)
    (found,) = torch.autograd.grad(conv(x), conv.weight_values, grad)
    dead = conv.col_indices % 9 != 4
    assert (found[dead] == 0).all() and not found[~dead].isfinite().any()


# ---- what it costs ------------------------------------------------------------------------------


def packed_pixels() -> int:
    """Of an image, margins included."""
    how = [plan.describe() for plan in patterns.plans() if isinstance(plan, _C.ConvPlan)]
    return max(one["pitch"] * one["image_rows"] for one in how)


@pytest.mark.parametrize("kernel, d", [(3, 256), (3, 1024), (2, 300), (1, 300)])
def test_the_packed_input_is_no_wider_than_what_is_read(kernel: int, d: int) -> None:
    """Whole, it would be `d` times as wide; with d = 1024 it was refused."""
    conv = layer(8, 8, kernel, padding=d, dilation=d)
    with kernels(ISAS[0]), torch.no_grad():
        conv(torch.randn(16, 8, 8, 8))
        assert packed_pixels() <= 8 * 8


def test_plans_are_built_once_also_in_inference_mode_and_die_with_the_layer() -> None:
    conv, x = layer(4, 5, 3, padding=9, dilation=9), torch.randn(3, 4, 5, 5)
    patterns.clear()
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            conv(x)
            known = patterns.plans()
            conv(x)
        assert len(known) == 2 and all(map(operator.is_, known, patterns.plans()))
    check_layer(conv, x)
    del conv, known
    gc.collect()
    assert not patterns.plans()


def test_another_pattern_is_seen() -> None:
    conv, x = layer(4, 5, 3, padding=9, dilation=9), torch.randn(3, 4, 5, 5)
    check_layer(conv, x)
    swap_pattern(conv, 60)
    check_layer(conv, x)
    conv.crow_indices.data.copy_(conv.crow_indices.flip(0).neg() + 60)
    with pytest.raises(RuntimeError, match="something else than the layer has written"):
        conv(x)


def test_a_pattern_that_leads_out_of_bounds_is_refused() -> None:
    """Also at a tap that is dead."""
    crow, col = (torch.tensor(t, dtype=torch.int32) for t in ([0, 2], [0, 9]))
    shape = (1, 1, 3, 3), (1, 1), (9, 9, 9, 9), (9, 9)
    with pytest.raises(ValueError, match="col_indices"):
        functional.sparse_conv2d(torch.randn(1, 1, 4, 4), torch.randn(2), None, crow, col, *shape)
