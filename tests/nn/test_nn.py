"""The layers as modules: construction, copies, dtypes, devices, optimizers, hooks."""

from __future__ import annotations

import copy
import math
import pickle
from io import BytesIO

import pytest
import torch
import torch.nn.functional as F
from helpers.nn_cases import ARGUMENTS, check_layer, layer, states_equal, swap_pattern
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dsr_kernels import SparseConv2d, SparseLinear, named_sparse_modules
from dsr_kernels.topology import Topology

# --- construction ---


def test_counts_and_bounds():
    conv = SparseConv2d(**ARGUMENTS, sparsity=0.9)
    assert conv.weight_shape == (9, 2, 3, 2)
    assert conv.numel == 108
    assert conv.nnz == conv.weight_values.numel() == conv.col_indices.numel() == 10
    assert conv.density == 10 / 108
    assert conv.sparsity == 1 - 10 / 108
    assert conv.row_length == 12
    bound = 1 / math.sqrt(12)
    for parameter in (conv.weight_values, conv.bias):
        assert parameter.abs().max() <= bound
    assert [name for name, _ in conv.named_parameters()] == ["weight_values", "bias"]
    assert [name for name, _ in conv.named_buffers()] == [
        "crow_indices",
        "col_indices",
        "dense_shape",
    ]
    conv.topology.validate()
    assert SparseConv2d(4, 4, 1, nnz=7).nnz == 7
    assert SparseLinear(3, 2, sparsity=0.999).nnz == 1


def test_init_is_torchs_scheme_on_the_non_zeros():
    torch.manual_seed(0)
    sparse, dense = SparseConv2d(64, 64, 3, sparsity=0.5), nn.Conv2d(64, 64, 3)
    assert sparse.weight_values.std().item() == pytest.approx(dense.weight.std().item(), rel=0.02)
    assert sparse.bias.std().item() == pytest.approx(dense.bias.std().item(), rel=0.3)


def test_same_generator_same_layer():
    assert states_equal(layer(**ARGUMENTS, seed=4), layer(**ARGUMENTS, seed=4))
    assert not states_equal(layer(**ARGUMENTS, seed=4), layer(**ARGUMENTS, seed=5))
    generator = torch.Generator().manual_seed(0)
    state = torch.random.get_rng_state()
    SparseLinear(8, 8, generator=generator)
    assert torch.equal(torch.random.get_rng_state(), state)  # only the given generator was used


@pytest.mark.parametrize(
    "change, message",
    [
        ({"in_channels": 7}, "in_channels: expected a positive multiple of groups=3, got 7"),
        ({"out_channels": 0}, "out_channels: expected a positive multiple"),
        ({"out_channels": 9.0}, "out_channels: expected a positive multiple"),
        ({"groups": 0}, "groups: expected an integer of at least 1, got 0"),
        ({"groups": 1.5}, "groups: expected"),
        ({"kernel_size": 0}, "kernel_size: expected an integer of at least 1"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size: expected"),
        ({"stride": 0}, "stride: expected"),
        ({"dilation": 1.5}, "dilation: expected"),
        ({"padding": -1}, "padding: expected"),
        ({"padding": "full"}, "padding: expected integers, 'same' or 'valid', got 'full'"),
        ({"padding": "same"}, "'same' needs stride 1"),
        ({"padding_mode": "mirror"}, "padding_mode: expected one of"),
        ({"sparsity": 1.0}, "sparsity: expected"),
        ({"nnz": 109}, "nnz: expected an integer in"),
    ],
)
def test_refuses_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        SparseConv2d(**(ARGUMENTS | change))


@pytest.mark.parametrize(("name", "wrong"), [("in", 1.5), ("in", 0), ("out", 2.0), ("out", "3")])
def test_linear_refuses_what_is_no_size(name, wrong):
    sizes = {"in_features": 4, "out_features": 4, f"{name}_features": wrong}
    with pytest.raises(ValueError, match=f"{name}_features: expected an integer of at least 1"):
        SparseLinear(**sizes)


def test_refuses_low_precision_weights():
    with pytest.raises(TypeError, match="values must be float32 or float64"):
        SparseLinear(4, 4, dtype=torch.bfloat16)


def test_repr_says_what_nn_conv2d_says_and_how_sparse():
    text = repr(SparseConv2d(**ARGUMENTS, bias=False, padding_mode="reflect"))
    for part in ("6, 9, kernel_size=(3, 2)", "stride=(1, 2)", "padding=(2, 1)", "dilation=(2, 1)"):
        assert part in text
    for part in ("groups=3", "bias=False", "padding_mode=reflect", "nnz=10", "sparsity=0.9074"):
        assert part in text
    assert "in_features=4, out_features=3, bias=True, nnz=1" in repr(SparseLinear(4, 3))


def test_weight_says_where_the_weight_is():
    conv = layer(**ARGUMENTS)
    with pytest.raises(
        AttributeError, match=r"no dense weight: use \.weight_values.*\.to_dense\(\)"
    ):
        _ = conv.weight
    assert not hasattr(conv, "weight")
    with pytest.raises(AttributeError, match="has no attribute 'wieght'"):
        _ = conv.wieght


# --- as a module among modules ---


def test_dtype_changes_leave_the_indices_int32():
    conv = layer(**ARGUMENTS)
    for change in (nn.Module.double, nn.Module.half, lambda m: m.to(torch.float64)):
        changed = change(copy.deepcopy(conv))
        assert changed.weight_values.dtype != torch.float32
        assert changed.crow_indices.dtype == changed.col_indices.dtype == torch.int32
    check_layer(conv.double(), torch.randn(2, 6, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_whole_and_independent(copier):
    conv = layer(**ARGUMENTS)
    x = torch.randn(2, 6, 8, 8)
    expected = conv(x)
    if copier == "deepcopy":
        twin = copy.deepcopy(conv)
    elif copier == "pickle":
        twin = pickle.loads(pickle.dumps(conv))
    else:
        buffer = BytesIO()
        torch.save(conv, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert states_equal(conv, twin)
    assert torch.equal(twin(x), expected)
    swap_pattern(twin, 20)
    assert torch.equal(conv(x), expected)
    check_layer(twin, x)


def test_share_memory_moves_the_pattern_without_breaking_it():
    conv = layer(**ARGUMENTS)
    x = torch.randn(2, 6, 8, 8)
    expected = conv(x)
    conv.share_memory()
    assert conv.col_indices.is_shared()
    assert torch.equal(conv(x), expected)


def test_meta_device_then_to_empty_then_reset():
    with torch.device("meta"):
        model = nn.Sequential(SparseConv2d(4, 6, 3), nn.Flatten(), SparseLinear(54, 5))
    assert all(t.is_meta for t in model.state_dict().values())
    model.to_empty(device="cpu")
    for _, module in named_sparse_modules(model):
        module.reset_parameters()
        module.topology.validate()
    assert model(torch.randn(2, 4, 5, 5)).isfinite().all()
    before = model[0].col_indices.clone()
    model[0].reset_parameters()
    assert torch.equal(model[0].col_indices, before)  # only the values are drawn anew from now on


def test_a_layer_used_twice_and_one_with_shared_values():
    linear = SparseLinear(6, 6, sparsity=0.5)
    x = torch.randn(3, 6)
    linear(linear(x)).sum().backward()
    dense = nn.Linear(6, 6)
    dense.load_state_dict({"weight": linear.to_dense(), "bias": linear.bias})
    dense(dense(x)).sum().backward()
    rows = linear.topology.linear_positions()
    torch.testing.assert_close(linear.weight_values.grad[:, 0], dense.weight.grad.flatten()[rows])
    model = nn.Sequential(linear, nn.ReLU(), linear)
    assert [name for name, _ in named_sparse_modules(model)] == ["0"]


def test_values_given_from_outside_or_made_by_a_hook():
    """functional_call and pruning put a computed tensor in place of the parameter."""
    linear, x = SparseLinear(6, 5, sparsity=0.5), torch.randn(3, 6)
    doubled = {"weight_values": 2 * linear.weight_values.detach()}
    expected = F.linear(x, 2 * linear.to_dense(), linear.bias)
    torch.testing.assert_close(torch.func.functional_call(linear, doubled, (x,)), expected)
    prune.random_unstructured(linear, "weight_values", 0.4)
    torch.testing.assert_close(linear(x), F.linear(x, linear.to_dense(), linear.bias))
    linear(x).sum().backward()
    assert linear.weight_values_orig.grad.count_nonzero() <= 9
    topology = Topology.random((5, 6), 3)
    with pytest.raises(RuntimeError, match="weight_values is not a parameter of its own"):
        linear.replace_topology(topology.crow_indices, topology.col_indices, torch.zeros(3))


def test_parametrized_bias():
    class Double(nn.Module):
        def forward(self, bias):
            return 2 * bias

    linear, x = SparseLinear(6, 5, sparsity=0.5), torch.randn(3, 6)
    expected = F.linear(x, linear.to_dense(), 2 * linear.bias)
    parametrize.register_parametrization(linear, "bias", Double())
    torch.testing.assert_close(linear(x), expected)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_optimizers_train_it(optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(SparseConv2d(3, 8, 3, sparsity=0.5), nn.ReLU(), nn.Flatten())
    model.append(SparseLinear(8 * 16, 4, sparsity=0.5))
    steps = optimizer(model.parameters(), lr=0.1 if optimizer is torch.optim.SGD else 0.01)
    x, target = torch.randn(32, 3, 6, 6), torch.randint(4, (32,))
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(x), target)
        steps.zero_grad()
        loss.backward()
        steps.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_ema_on_a_static_pattern():
    model = layer(**ARGUMENTS)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=False)
    ema.update_parameters(model)
    before = model.weight_values.detach().clone()
    with torch.no_grad():
        model.weight_values += 1
    ema.update_parameters(model)
    torch.testing.assert_close(ema.module.weight_values, before + 0.5)
    check_layer(ema.module, torch.randn(2, 6, 8, 8))


def test_gradient_checkpointing_and_clipping():
    from torch.utils.checkpoint import checkpoint

    conv, x = layer(**ARGUMENTS), torch.randn(2, 6, 8, 8, requires_grad=True)
    checkpoint(conv, x, use_reentrant=False).sum().backward()
    gradient = conv.weight_values.grad.clone()
    conv.zero_grad()
    conv(x).sum().backward()
    assert torch.equal(conv.weight_values.grad, gradient)
    torch.nn.utils.clip_grad_norm_(conv.parameters(), 0.1)


def test_a_dense_weight_cannot_be_set():
    """Weights tied after sparsify would be held, saved and never used."""
    linear = SparseLinear(4, 3)
    with pytest.raises(AttributeError, match=r"no dense weight to set: .* before sparsify"):
        linear.weight = nn.Parameter(torch.ones(3, 4))
    assert [name for name, _ in linear.named_parameters()] == ["weight_values", "bias"]


def test_a_pickle_from_before_the_values_were_renamed_is_refused():
    linear = SparseLinear(4, 3)
    parameters = dict(linear._parameters)
    parameters["values"] = parameters.pop("weight_values")
    with pytest.raises(RuntimeError, match="this pickle was made before the `values`"):
        SparseLinear.__new__(SparseLinear).__setstate__({**vars(linear), "_parameters": parameters})
