"""What hangs on a layer: data is carried over to its twin, code is refused. One rule both ways."""

from __future__ import annotations

import copy
import types
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from dsr_kernels import SparseLinear, densify, sparsify


def made(sparse: bool) -> nn.Module:
    return SparseLinear(4, 3, nnz=5) if sparse else nn.Linear(4, 3)


def weight(layer: nn.Module) -> nn.Parameter:
    return layer.weight_values if isinstance(layer, SparseLinear) else layer.weight


def weight_name(layer: nn.Module) -> str:
    return "weight_values" if isinstance(layer, SparseLinear) else "weight"


def convert(model: nn.Module, inplace: bool = False) -> nn.Module:
    """To the other side."""
    if any(isinstance(module, SparseLinear) for module in model.modules()):
        return densify(model, inplace=inplace)
    return sparsify(model, 0.5, inplace=inplace, preset="all")


def zeroed(module, args, out):
    return out * 0


class Tagged(torch.Tensor):
    pass


def subclassed(layer: nn.Module) -> None:
    tagged = torch.zeros_like(weight(layer)).as_subclass(Tagged)
    layer._parameters[weight_name(layer)] = nn.Parameter(tagged)


class Doubled(nn.Module):
    def forward(self, values):
        return 2 * values


CODE = {
    "forward hook": lambda m: m.register_forward_hook(zeroed),
    "forward pre-hook": lambda m: m.register_forward_pre_hook(lambda module, args: args),
    "backward hook": lambda m: m.register_full_backward_hook(lambda module, i, o: None),
    "backward pre-hook": lambda m: m.register_full_backward_pre_hook(lambda module, o: None),
    "state_dict hook": lambda m: m.register_state_dict_post_hook(lambda *args: None),
    "state_dict pre-hook": lambda m: m.register_state_dict_pre_hook(lambda *args: None),
    "load hook": lambda m: m.register_load_state_dict_post_hook(lambda *args: None),
    "load pre-hook": lambda m: m.register_load_state_dict_pre_hook(lambda *args: None),
    "weight hook": lambda m: weight(m).register_hook(lambda grad: grad * 0),
    "bias hook": lambda m: m.bias.register_hook(lambda grad: grad * 0),
    "accumulated": lambda m: weight(m).register_post_accumulate_grad_hook(lambda p: None),
    "bound forward": lambda m: setattr(m, "forward", types.MethodType(lambda s, x: x * 0, m)),
    "compiled": lambda m: m.compile(backend="eager"),
    "parametrized": lambda m: parametrize.register_parametrization(m, weight_name(m), Doubled()),
    "pruned": lambda m: prune.random_unstructured(m, weight_name(m), 1),
    "pruned bias": lambda m: prune.random_unstructured(m, "bias", 1),
    "tensor subclass": subclassed,
}


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", CODE)
def test_code_is_refused_by_name_before_anything_changes(kind, sparse):
    layer, other = made(sparse), made(sparse)
    CODE[kind](layer)
    model = nn.Sequential(other, layer)
    if sparse:
        with pytest.raises(TypeError, match=r"densify: these layers cannot be made dense: 1: it"):
            densify(model, inplace=True)
        with pytest.raises(TypeError, match=r"dense_module: cannot convert .*: it"):
            layer.dense_module()
        assert model[0] is other
    else:
        with pytest.warns(UserWarning, match=r"these layers stay dense: 1: it"):
            sparsify(model, 0.5, inplace=True, preset="all")
        with pytest.raises(TypeError, match=r"from_dense: cannot convert .*: it"):
            SparseLinear.from_dense(layer, 0.5)
        assert isinstance(model[0], SparseLinear)
    assert model[1] is layer


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_data_is_carried_over(sparse, inplace):
    layer, peer = made(sparse), nn.BatchNorm1d(3)
    layer.my_flag, layer.table = "mine", {"rows": [1]}
    layer.register_buffer("kept", torch.ones(2))
    layer.register_buffer("lost", torch.ones(2), persistent=False)
    layer.scale = nn.Parameter(torch.full((2,), 7.0))
    layer.extra = nn.Tanh()
    weight(layer)._no_weight_decay, weight(layer).lr_scale = True, 0.5
    layer.bias.lr_scale = 0.25
    peer.weight.lr_scale = 0.75
    peer.weight.register_hook(lambda grad: grad * 0)
    layer.bias.requires_grad_(False)
    layer.eval()
    model = convert(nn.Sequential(layer, peer), inplace)
    twin = model[0]
    assert type(twin) is not type(layer)
    assert (twin.my_flag, twin.table) == ("mine", {"rows": [1]})
    assert (twin.table is layer.table) == inplace
    assert (twin.scale is layer.scale) == (twin.extra is layer.extra) == inplace
    assert (twin.bias is layer.bias) == inplace
    assert torch.equal(twin.scale, layer.scale)
    assert torch.equal(twin.bias, layer.bias)
    assert {"kept", "scale"} <= set(twin.state_dict())
    assert "lost" not in twin.state_dict()
    assert torch.equal(twin.lost, layer.lost)
    assert (weight(twin)._no_weight_decay, weight(twin).lr_scale) == (True, 0.5)
    assert (twin.bias.lr_scale, model[1].weight.lr_scale) == (0.25, 0.75)
    assert not twin.training
    assert not twin.bias.requires_grad
    assert weight(twin).requires_grad
    model[1](torch.randn(4, 3)).pow(3).sum().backward()
    assert not model[1].weight.grad.any()  # its hook is there, in the copy as well


def test_a_gradient_mask_does_not_vanish():
    """The mask makes the gradient 0; converted without it, the two kept weights would get 1."""
    linear = nn.Linear(2, 1, bias=False)
    linear.weight.register_hook(lambda grad: grad * 0)
    with pytest.raises(ValueError, match=r"to convert: the model: its weight has hooks"):
        sparsify(linear, 0.0, preset="all")
    with pytest.warns(UserWarning, match="0: its weight has hooks"):
        sparse = sparsify(nn.Sequential(linear, nn.Linear(1, 1)), 0.0, preset="all")
    sparse[0](torch.ones(1, 2)).sum().backward()
    assert torch.equal(sparse[0].weight.grad, torch.zeros(1, 2))


def test_densify_does_not_drop_hooks_or_a_forward():
    class Zero(SparseLinear):
        def forward(self, x):
            return super().forward(x) * 0

    class Knows(Zero):
        def dense_module(self):
            return nn.Sequential(super().dense_module(), nn.Threshold(1e9, 0.0))

    hooked = SparseLinear(2, 1, sparsity=0.0)
    hooked.register_forward_hook(zeroed)
    with pytest.raises(TypeError, match="the model: it has hooks"):
        densify(hooked)
    with pytest.raises(TypeError, match="0: Zero is a subclass of SparseLinear and may compute"):
        densify(nn.Sequential(Zero(2, 1)))
    assert densify(Knows(2, 1))(torch.ones(1, 2)).item() == 0


@pytest.mark.parametrize("inplace", [False, True])
def test_tied_sparse_layers_become_tied_dense_ones(inplace):
    one = SparseLinear(4, 3, nnz=5)
    two = copy.deepcopy(one)
    two.weight_values = one.weight_values
    two.bias = one.bias
    model = densify(nn.Sequential(one, two), inplace=inplace)
    assert model[0] is not model[1]
    assert model[0].weight is model[1].weight
    assert model[0].bias is model[1].bias
    assert torch.equal(model[0].weight, one.to_dense())
    other = SparseLinear(4, 3, nnz=5, generator=torch.Generator().manual_seed(3))
    other.weight_values = one.weight_values
    with pytest.raises(TypeError, match="0: its weight_values are shared with 1, its pattern is"):
        densify(nn.Sequential(one, other))


def test_a_bias_tied_to_another_module_stays_tied():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model[1].bias = model[0].bias
    sparse = sparsify(model, 0.5, preset="all")
    assert sparse[0].bias is sparse[1].bias
    assert sparse[0].bias is not model[0].bias


def test_a_layer_that_is_not_what_its_arguments_say_is_refused():
    linear = nn.Linear(4, 3)
    linear.weight = nn.Parameter(torch.ones(5, 4))
    with pytest.raises(TypeError, match=r"its weight is of shape \(5, 4\), its arguments say"):
        SparseLinear.from_dense(linear, 0.5)


def test_a_name_that_the_twin_needs_is_refused():
    linear = nn.Linear(4, 3)
    linear.nnz = 7
    with pytest.raises(TypeError, match="its attribute nnz has a name that SparseLinear needs"):
        SparseLinear.from_dense(linear, 0.5)
    with pytest.raises(ValueError, match="the model: its attribute nnz"):
        sparsify(linear, preset="all")


def test_gradients_stay_behind():
    layer = nn.Linear(4, 3)
    layer(torch.ones(1, 4)).sum().backward()
    sparse = SparseLinear.from_dense(layer, 0.5)
    assert sparse.weight_values.grad is None
    assert sparse.bias.grad is None


@pytest.mark.parametrize("inplace", [False, True])
def test_on_meta_the_pattern_is_left_to_a_checkpoint_or_to_reset_parameters(inplace):
    def network() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))

    with torch.device("meta"):
        dense = network()
    real = sparsify(network(), 0.5, preset="all")
    meta = sparsify(dense, 0.5, inplace=inplace, preset="all")
    assert all(tensor.is_meta for tensor in meta.state_dict().values())
    assert [meta[i].nnz for i in (0, 2)] == [real[i].nnz for i in (0, 2)]
    back = densify(meta)
    assert all(tensor.is_meta for tensor in back.state_dict().values())
    assert [tuple(p.shape) for p in back.parameters()] == [
        tuple(p.shape) for p in network().parameters()
    ]
    meta.to_empty(device="cpu")
    with pytest.raises(TypeError, match="0: it has no pattern yet; load a checkpoint or call"):
        densify(meta)
    x = torch.randn(2, 3, 4, 4)
    drawn = copy.deepcopy(meta)
    for i in (0, 2):
        drawn[i].reset_parameters()
        drawn[i].topology.validate()
    assert drawn(x).isfinite().all()
    meta.load_state_dict(real.state_dict())
    assert torch.equal(meta(x), real(x))


@pytest.mark.parametrize("keep", ["magnitude", "kernels"])
def test_on_meta_there_is_nothing_to_choose_from(keep):
    with torch.device("meta"):
        dense = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"keep: a layer on meta .* pass keep='random'"):
        sparsify(dense, 0.5, keep=keep, preset="all")
    with pytest.raises(ValueError, match="mask: a layer on meta"):
        SparseLinear.from_dense(dense[0], mask=torch.ones(3, 4))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("wrap", "reason"),
    [
        (lambda m: torch.compile(m, backend="eager"), "torch.compile holds it"),
        (torch.jit.script, "torch.jit has compiled it"),
    ],
)
def test_compiled_layers_are_refused(wrap, reason, sparse):
    layer = made(sparse)
    if sparse and wrap is torch.jit.script:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer = torch.jit.trace(layer, torch.ones(1, 4), check_trace=False)
    else:
        layer = wrap(layer)
    model = nn.Sequential(made(sparse), layer)
    if sparse:
        with pytest.raises(TypeError, match=reason):
            densify(model)
    else:
        with pytest.warns(UserWarning, match=rf"1.*: {reason}"):
            sparsify(model, 0.5, inplace=True, preset="all")
