"""SparseConv1d computes what nn.Conv1d computes and lives wherever the other layers live."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers.nn_cases import check_layer, states_equal, swap_pattern, within_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dsr_kernels
from dsr_kernels import SparseConv1d, SparseLinear
from dsr_kernels.nn import functional
from dsr_kernels.rewiring import DSR, METHODS

ARGUMENTS = {
    "in_channels": 6,
    "out_channels": 9,
    "kernel_size": 4,
    "stride": 2,
    "padding": 3,
    "dilation": 2,
    "groups": 3,
}


def layer(*args, sparsity: float = 0.6, seed: int = 0, **kwargs) -> SparseConv1d:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    return SparseConv1d(*args, sparsity=sparsity, generator=generator, **kwargs)


def sequences(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@st.composite
def convolutions(draw):
    """(layer arguments, input shape, sparsity) of a convolution that torch accepts."""
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    kernel, dilation = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    padding = draw(st.sampled_from((0, 1, (2,), "same", "valid")))
    stride = 1 if padding == "same" else draw(st.integers(1, 3))
    pad = {"same": 99, "valid": 0, (2,): 2}.get(padding, padding)
    least = max(1, dilation * (kernel - 1) + 1 - 2 * pad)
    arguments = {
        "in_channels": groups * draw(st.integers(1, 5)),
        "out_channels": groups * draw(st.integers(1, 6)),
        "kernel_size": draw(st.sampled_from((kernel, (kernel,)))),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    length = draw(st.one_of(st.integers(least, least + 9), st.just(least + 130)))
    n = draw(st.sampled_from((0, 1, 2, 3, 7, 8, 9, 17)))
    return arguments, (n, arguments["in_channels"], length), draw(st.sampled_from((0.0, 0.5, 0.95)))


@settings(max_examples=80, deadline=None)
@given(case=convolutions(), double=st.booleans(), last=st.booleans(), grad_last=st.booleans())
def test_any_shape_agrees_with_torch(case, double, last, grad_last):
    arguments, shape, sparsity = case
    dtype = torch.float64 if double else torch.float32
    conv, x = layer(**arguments, sparsity=sparsity, dtype=dtype), sequences(*shape, dtype=dtype)
    x = channels_last(x) if last else x
    with torch.no_grad():
        grad = torch.randn_like(conv(x))
    check_layer(conv, x, channels_last(grad) if grad_last else grad)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """The same [N, C, L], with channels innermost in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, "same"])
def test_padding_modes_batched_and_not(mode, padding):
    conv = layer(4, 5, 4, padding=padding, padding_mode=mode, dilation=2)
    dense = conv.dense_module()
    x = sequences(3, 4, 11)
    torch.testing.assert_close(conv(x), dense(x))
    torch.testing.assert_close(conv(x[0]), dense(x[0]))
    check_layer(conv, x)


def test_a_sequence_with_channels_innermost_gives_one():
    conv, x = layer(4, 6, 3, padding=1), sequences(2, 4, 9)
    y = conv(channels_last(x))
    assert y.stride() == (54, 1, 6)
    torch.testing.assert_close(y, conv(x))
    for strange in (x.expand(2, 4, 9)[:1].expand(5, 4, 9), sequences(2, 4, 18)[..., ::2]):
        check_layer(conv, strange)


def test_gradcheck():
    conv = layer(4, 6, 3, padding=2, stride=2, groups=2, dtype=torch.float64)
    x = sequences(2, 4, 7, dtype=torch.float64).requires_grad_()

    def run(x, values, bias):
        parameters = {"weight_values": values, "bias": bias}
        return torch.func.functional_call(conv, parameters, (x,))

    arguments = (x, conv.weight_values, conv.bias)
    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradgradcheck(run, arguments)


def test_compiled_equals_eager_while_nnz_changes():
    torch._dynamo.reset()
    conv, x = layer(4, 6, 3, padding=1, padding_mode="circular"), sequences(2, 4, 9)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    for nnz in (20, 31, 12):
        swap_pattern(conv, nnz)
        torch.testing.assert_close(compiled(x), conv(x))
        grads = (
            torch.autograd.grad(run(x).sum(), [*conv.parameters()]) for run in (compiled, conv)
        )
        for ours, eager in zip(*grads, strict=True):
            torch.testing.assert_close(ours, eager)


def test_autocast():
    conv, x = layer(4, 6, 5), sequences(3, 4, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    exact = F.conv1d(x.bfloat16().double(), conv.to_dense().double(), conv.bias.double())
    assert within_rule(y, exact.float(), exact)


@pytest.mark.parametrize("keep", ["magnitude", "random", "kernels"])
@pytest.mark.parametrize("bias", [True, False])
def test_there_and_back(keep, bias):
    conv = nn.Conv1d(**ARGUMENTS, bias=bias, padding_mode="replicate", dtype=torch.float64)
    sparse = SparseConv1d.from_dense(conv, 0.5, keep=keep)
    assert sparse.weight_shape == tuple(conv.weight.shape)
    assert torch.equal(sparse.to_dense(), conv.weight * (sparse.to_dense() != 0))
    back = sparse.dense_module()
    assert type(back) is nn.Conv1d and repr(back) == repr(conv)
    x = sequences(2, 6, 13, dtype=torch.float64)
    torch.testing.assert_close(back(x), sparse(x))
    for other in (nn.Conv2d(6, 9, 3), nn.Linear(6, 9)):
        with pytest.raises(TypeError, match=r"expected an nn\.Conv1d, got"):
            SparseConv1d.from_dense(other, 0.5)


def test_repr_copies_and_checkpoints():
    one, two = layer(**ARGUMENTS), layer(**ARGUMENTS, seed=3, sparsity=0.3)
    text = "SparseConv1d(6, 9, kernel_size=(4,), stride=(2,), padding=(3,), dilation=(2,), groups=3"
    assert repr(one).startswith(text)
    x = sequences(2, 6, 15)
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert torch.equal(other(x), one(x))
    two.load_state_dict(one.state_dict())
    assert states_equal(one, two) and two.nnz == one.nnz
    dense = one.dense_module()
    two = layer(**ARGUMENTS, seed=3, sparsity=0.3)
    two.load_state_dict(dense.state_dict())
    torch.testing.assert_close(two(x), dense(x))
    with pytest.raises(RuntimeError, match=r"expected a weight of shape \(9, 2, 4\)"):
        SparseConv1d(6, 9, 4, groups=3).load_state_dict(SparseConv1d(6, 9, 5).state_dict())


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"kernel_size": (3, 3)}, "kernel_size: expected an integer of at least 1 or a tuple of"),
        ({"stride": 0}, "stride: expected an integer"),
        ({"padding": -1}, "padding: expected an integer"),
        ({"padding": "all"}, "padding: expected integers, 'same' or 'valid'"),
        ({"padding": "same", "stride": 2}, "'same' needs stride 1"),
        ({"padding_mode": "mirror"}, "padding_mode: expected one of"),
        ({"groups": 4}, "in_channels: expected a positive multiple of groups=4"),
        ({"dtype": torch.float16}, "SparseConv1d: values must be float32 or float64"),
    ],
)
def test_refuses_wrong_arguments(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SparseConv1d(**{"in_channels": 6, "out_channels": 9, "kernel_size": 3, **arguments})


def test_refuses_wrong_inputs():
    conv = layer(4, 6, 5)
    with pytest.raises(ValueError, match=r"SparseConv1d: expected input of shape \(N, 4, L\) or"):
        conv(torch.zeros(2, 3, 9))
    with pytest.raises(ValueError, match=r"got \(2, 4, 9, 9\)"):
        conv(torch.zeros(2, 4, 9, 9))
    with pytest.raises(ValueError, match=r"padded input of at least 5, .*, got 4 \(input 4\)"):
        conv(torch.zeros(2, 4, 4))
    with pytest.raises(TypeError, match=r"SparseConv1d: expected input of dtype torch\.float32"):
        conv(torch.zeros(2, 4, 9, dtype=torch.float64))
    with pytest.raises(ValueError, match="SparseConv1d: expected weight_shape"):
        parts = conv.weight_values, None, conv.crow_indices, conv.col_indices
        functional.sparse_conv1d(torch.zeros(2, 4, 9), *parts, (6, 4, 1, 5))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(3, 8, 5, padding=2),
        nn.ReLU(),
        nn.Conv1d(8, 12, 4, stride=2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 7, 4),
    )


def test_whole_models():
    dense = network()
    model = dsr_kernels.sparsify(dense, 0.8, "erk", exclude=["5"], preset="all")
    assert isinstance(model[0], SparseConv1d) and isinstance(model[2], SparseConv1d)
    x = sequences(2, 3, 16)
    torch.testing.assert_close(dsr_kernels.densify(model)(x), model(x))
    table = dsr_kernels.summary(model)
    assert [row.shape for row in table.sparse_layers] == [(8, 3, 5), (12, 4, 4)]
    assert table.sparse_nnz == (8 * 3 * 5 + 12 * 4 * 4) * 2 // 10
    found = dsr_kernels.explain(model, (2, 3, 16))
    assert [row.input_shape for row in found.rows[::2]] == [(2, 3, 1, 16), (2, 8, 1, 16)]


def train(model: nn.Module, rewirer_of) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rewirer, losses = rewirer_of(model, optimizer), []
    x, target = sequences(32, 3, 16), torch.arange(32) % 4
    for _ in range(60):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewirer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", ["dsr", "set", "rigl", "snfs"])
def test_rewiring(method):
    model = dsr_kernels.sparsify(network(), 0.6, preset="all")
    before = [m.topology.linear_positions() for m in (model[0], model[2])]
    arguments = {"prune_fraction": 0.1} if method == "dsr" else {"fraction": 0.2, "length": 60}
    losses = train(model, lambda m, o: METHODS[method](m, o, every=10, **arguments))
    assert losses[-1] < 0.5 * losses[0]
    for module, old in zip((model[0], model[2]), before, strict=True):
        assert not torch.equal(module.topology.validate().linear_positions(), old)


def test_whole_kernels():
    model = dsr_kernels.sparsify(network(), 0.6, keep="kernels", exclude=["5"], preset="all")
    options = {"granularity": "kernel", "prune_fraction": 0.2, "every": 5}
    train(model, lambda m, o: DSR(m, o, **options))
    for module, size in ((model[0], 5), (model[2], 4)):
        kernels = module.topology.linear_positions().view(-1, size)
        assert torch.equal(kernels, kernels[:, :1] // size * size + torch.arange(size))
    swap_pattern(model[0], 10)
    with pytest.raises(ValueError, match="layer '0': expected whole 5 kernels"):
        DSR(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


@settings(max_examples=20, deadline=None)
@given(convolutions())
def test_gradient_growth_finds_the_largest_dense_gradients(case):
    """What RigL grows: the free positions where nn.Conv1d's own weight gradient is largest."""
    arguments, (_, *shape), _ = case
    conv = layer(**arguments, dtype=torch.float64)
    if conv.nnz == conv.numel or conv.nnz < 4:
        return
    dense, x = conv.dense_module(), sequences(3, *shape, dtype=torch.float64)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.0)
    rewirer = METHODS["rigl"](conv, optimizer, fraction=0.3, length=9, every=1)
    conv(x).square().sum().backward()
    dense(x).square().sum().backward()
    old = set(conv.topology.linear_positions().tolist())
    report = rewirer.step()
    grown = set(conv.topology.linear_positions().tolist()) - old
    scores = dense.weight.grad.abs().flatten()
    free = [p for p in range(conv.numel) if p not in old]
    assert len(grown) == report.grown
    worst = min((scores[p].item() for p in grown), default=0.0)
    assert all(scores[p].item() <= worst * (1 + 1e-9) + 1e-12 for p in free if p not in grown)


def test_a_linear_layer_is_its_pointwise_case():
    conv = layer(7, 5, 1)
    linear = SparseLinear(7, 5)
    linear.load_state_dict({"weight": conv.to_dense()[..., 0], "bias": conv.bias})
    x = sequences(3, 7, 4)
    torch.testing.assert_close(conv(x), linear(x.transpose(1, 2)).transpose(1, 2))
