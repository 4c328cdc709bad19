"""SparseConv2d and SparseLinear compute what nn.Conv2d and nn.Linear compute, whatever is asked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.convolutions import convolutions, image
from helpers.nn_cases import check_layer, layer, swap_pattern, within_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dsr_kernels import SparseConv2d, SparseLinear


@settings(max_examples=60, deadline=None)
@given(case=convolutions(), last=st.booleans(), double=st.booleans(), grad_last=st.booleans())
def test_any_shape_agrees_with_torch(case, last, double, grad_last):
    arguments, shape, sparsity = case
    dtype = torch.float64 if double else torch.float32
    conv = layer(**arguments, sparsity=sparsity, dtype=dtype)
    x = image(*shape, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    with torch.no_grad():
        grad = torch.randn_like(conv(x))
    if grad_last:
        grad = grad.contiguous(memory_format=torch.channels_last)
    check_layer(conv, x, grad)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same"])
def test_padding_modes(mode, padding):
    conv = layer(3, 4, (4, 3), padding=padding, padding_mode=mode, dilation=(1, 2))
    dense = nn.Conv2d(3, 4, (4, 3), padding=padding, padding_mode=mode, dilation=(1, 2))
    dense.load_state_dict({"weight": conv.to_dense(), "bias": conv.bias})
    x = image(2, 3, 8, 7)
    torch.testing.assert_close(conv(x), dense(x))
    check_layer(conv, x)


@pytest.mark.parametrize("kernel", [(2, 2), (4, 3), (5, 2)])
def test_same_padding_of_an_even_kernel_puts_the_odd_one_below_and_right(kernel):
    conv = layer(2, 3, kernel, padding="same", dilation=(3, 1))
    x = image(2, 2, 9, 6)
    assert conv(x).shape == (2, 3, 9, 6)
    check_layer(conv, x)


def test_unbatched_input():
    conv = layer(4, 6, 3, padding=1)
    x = image(1, 4, 5, 5)
    assert torch.equal(conv(x[0]), conv(x)[0])
    reflect = layer(4, 6, 3, padding=1, padding_mode="reflect")
    assert torch.equal(reflect(x[0]), reflect(x)[0])


def test_empty_batch_gives_zero_gradients():
    conv = layer(4, 6, 3, padding=1)
    x = torch.empty(0, 4, 5, 5, requires_grad=True)
    y = conv(x)
    assert y.shape == (0, 6, 5, 5)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(conv.weight_values.grad, torch.zeros_like(conv.weight_values))
    assert torch.equal(conv.bias.grad, torch.zeros(6))


@pytest.mark.parametrize("bias", [True, False])
def test_no_non_zeros_at_all(bias):
    conv = SparseConv2d(4, 6, 3, padding=1, nnz=0, bias=bias)
    check_layer(conv, image(2, 4, 5, 5))
    linear = SparseLinear(4, 6, nnz=0)
    assert torch.equal(linear(torch.ones(2, 4)), linear.bias.expand(2, 6))


def test_empty_rows():
    conv = layer(4, 6, 3, padding=1)
    crow = torch.tensor([0, 0, 3, 3, 4, 4, 4], dtype=torch.int32)
    col = torch.tensor([0, 7, 35, 20], dtype=torch.int32)
    conv.replace_topology(crow, col, torch.randn(4))
    check_layer(conv, image(3, 4, 6, 5))


def test_dense_pattern():
    conv = layer(8, 16, 3, padding=1, sparsity=0.0)
    assert conv.nnz == conv.numel
    check_layer(conv, image(9, 8, 10, 10))


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced rows": lambda x: x.repeat(1, 1, 2, 1)[:, :, ::2],
    "sliced columns": lambda x: x.repeat(1, 1, 1, 3)[..., 1::3],
    "sliced channels": lambda x: x.repeat(1, 2, 1, 1)[:, ::2],
    "sliced channels_last": lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, 1:, 1:],
    "transposed image": lambda x: x.transpose(2, 3),
    "transposed batch": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channels between": lambda x: x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3),
    "expanded batch": lambda x: x[:1].expand(x.shape),
    "expanded channels": lambda x: x[:, :1].expand(x.shape),
    "expanded everywhere": lambda x: x[:1, :1, :1, :1].expand(x.shape),
    "offset": lambda x: x.repeat(2, 1, 1, 1)[1:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", ["contiguous", "channels_last", "expanded everywhere"])
@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (1, 1)])
def test_every_layout_of_input_and_gradient(layout, grad_layout, kernel, stride):
    conv = layer(8, 12, kernel, stride=stride, padding=kernel // 2)
    x = LAYOUTS[layout](image(9, 8, 11, 7))
    with torch.no_grad():
        grad = torch.randn_like(conv(x)).contiguous()
    grad = LAYOUTS.get(grad_layout, lambda g: g)(grad)
    check_layer(conv, x, grad)


def test_output_and_gradient_follow_the_memory_format():
    conv, x = layer(4, 6, 3, padding=1), image(2, 4, 5, 6)
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.contiguous(memory_format=layout).requires_grad_()
        y = conv(leaf)
        assert y.is_contiguous(memory_format=layout)
        (gx,) = torch.autograd.grad(y.sum(), leaf)
        assert gx.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
def test_low_precision_activations(dtype, weights):
    conv = layer(8, 6, 3, padding=1, stride=2, dtype=weights)
    check_layer(conv, image(3, 8, 9, 8).to(dtype))
    check_layer(conv, image(3, 8, 9, 8).to(dtype, memory_format=torch.channels_last))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_dtype_nn_conv2d_gives(dtype):
    x = image(2, 4, 6, 6).requires_grad_()
    conv, dense = layer(4, 6, 3), nn.Conv2d(4, 6, 3)
    linear, dense_linear = SparseLinear(6, 5), nn.Linear(6, 5)
    with torch.autocast("cpu", dtype=dtype):
        y, expected = conv(x), dense(x)
        assert y.dtype == expected.dtype == dtype
        assert linear(x).dtype == dense_linear(x).dtype == dtype
        assert conv.double()(x.double()).dtype == torch.float64
    conv.float()
    y.sum().backward()
    assert x.grad.dtype == conv.weight_values.dtype == torch.float32


def test_autocast_around_a_float64_layer_keeps_float64():
    conv = layer(4, 6, 3, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(image(2, 4, 6, 6, torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (0, 7), (2, 0, 7), (2, 3, 4, 7)])
def test_linear_of_any_rank(shape):
    linear = SparseLinear(7, 5, sparsity=0.5)
    x = torch.randn(shape, requires_grad=True)
    y = linear(x)
    expected = F.linear(x, linear.to_dense(), linear.bias)
    torch.testing.assert_close(y, expected)
    ours = torch.autograd.grad(y.sum(), [x, linear.weight_values, linear.bias])
    theirs = torch.autograd.grad(expected.sum(), [x, linear.weight_values, linear.bias])
    torch.testing.assert_close(ours, theirs)


def test_linear_takes_transposed_and_expanded_input():
    linear = SparseLinear(7, 5, sparsity=0.5)
    for x in (torch.randn(7, 9).t(), torch.randn(1, 7).expand(8, 7), torch.randn(4, 14)[:, ::2]):
        exact = F.linear(x.double(), linear.to_dense().double(), linear.bias.double())
        assert within_rule(linear(x), F.linear(x, linear.to_dense(), linear.bias), exact)


@settings(max_examples=15, deadline=None)
@given(case=convolutions(), seed=st.integers(0, 99))
def test_one_and_two_threads_agree_bit_for_bit(case, seed):
    arguments, shape, sparsity = case
    conv = layer(**arguments, sparsity=sparsity, seed=seed)
    assert_threads_agree(conv, image(*shape))


@pytest.mark.parametrize("last", [False, True])
def test_threads_agree_on_a_layer_of_wrn(last):
    conv = layer(32, 64, 3, padding=1, sparsity=0.9)
    x = image(16, 32, 16, 16)
    assert_threads_agree(conv, x.contiguous(memory_format=torch.channels_last) if last else x)


def test_threads_agree_on_one_output_channel():
    assert_threads_agree(layer(3, 1, 3, padding=1), image(1, 3, 300, 300))
    assert_threads_agree(layer(3, 1, 3, padding=1), image(40, 3, 64, 64))


def assert_threads_agree(conv, x):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaf = x.detach().requires_grad_()
            y = conv(leaf)
            grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
            inputs = [leaf, *conv.parameters()]
            results.append([y, *torch.autograd.grad(y, inputs, grad)])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_more_than_int32_elements():
    """A weight of 2.8e9 elements: the answer is computed from the non-zeros themselves."""
    linear = SparseLinear(70_000, 40_000, nnz=1000)
    x = torch.randn(3, 70_000, requires_grad=True)
    y = linear(x)
    positions = linear.topology.linear_positions()
    rows, cols = positions // 70_000, positions % 70_000
    product = x[:, cols] * linear.weight_values.flatten()
    expected = linear.bias.expand(3, -1).index_add(1, rows, product)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    ours = torch.autograd.grad(y, [x, linear.weight_values, linear.bias], grad)
    torch.testing.assert_close(ours[0], torch.autograd.grad(expected, x, grad)[0])
    torch.testing.assert_close(ours[1][:, 0], (grad[:, rows] * x[:, cols]).sum(0).detach())
    torch.testing.assert_close(ours[2], grad.sum(0))


def test_convolution_of_more_than_int32_elements():
    conv = SparseConv2d(16_384, 16_384, 3, padding=1, nnz=2000)  # 2.4e9 elements
    assert conv.numel > 2**31
    x = torch.randn(1, 16_384, 2, 2, requires_grad=True)
    y = conv(x)
    positions = conv.topology.linear_positions()
    row, rest = positions // conv.row_length, positions % conv.row_length
    channel, kh, kw = rest // 9, rest // 3 % 3, rest % 3
    padded = F.pad(x, (1, 1, 1, 1))
    taps = torch.stack([padded[0, channel, kh + p, kw + q] for p in (0, 1) for q in (0, 1)], 1)
    expected = conv.bias[:, None].expand(-1, 4).index_add(0, row, taps * conv.weight_values)
    torch.testing.assert_close(y.view(-1, 4), expected)
    grad = torch.randn_like(expected)
    ours = torch.autograd.grad(y, [x, conv.weight_values], grad.view_as(y))
    theirs = torch.autograd.grad(expected, [x, conv.weight_values], grad)
    torch.testing.assert_close(ours, theirs)


def test_results_are_right_again_after_the_pattern_changed():
    conv, x = layer(8, 12, 3, padding=1), image(4, 8, 7, 7)
    for nnz in (100, 300, 300, 1, 864):
        swap_pattern(conv, nnz, seed=nnz)
        check_layer(conv, x)
