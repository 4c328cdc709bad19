"""What training scripts do with weight_values [nnz, 1]: decay, names, torch.nn.utils."""

from __future__ import annotations

import pytest
import torch
from helpers.nn_cases import swap_pattern
from torch import nn
from torch.nn.utils import parametrize, prune

from dsr_kernels import SparseConv1d, SparseConv2d, SparseLinear, sparsify
from dsr_kernels.rewiring import DSR
from dsr_kernels.rewiring.layers import find_layers


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = SparseConv2d(3, 8, 3, sparsity=0.5)
        self.bn = nn.BatchNorm2d(8)
        self.line = SparseConv1d(8, 8, 3, sparsity=0.5)
        self.bn1 = nn.BatchNorm1d(8)
        self.single = SparseLinear(8 * 14, 6, nnz=1)  # one weight is [1, 1]
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x))).flatten(2)
        return self.head(self.single(torch.relu(self.bn1(self.line(x))).flatten(1)))


def timm(model: nn.Module, skip: tuple[str, ...] = ()) -> tuple[list, list]:
    """timm's param_groups_weight_decay: vectors, biases and listed names go undecayed."""
    decayed, others = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            plain = p.ndim <= 1 or name.endswith(".bias") or name in skip
            (others if plain else decayed).append(p)
    return decayed, others


def nanogpt(model: nn.Module) -> tuple[list, list]:
    """nanoGPT's configure_optimizers: everything with two dimensions is decayed."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decayed = [p for p in trained.values() if p.dim() >= 2]
    return decayed, [p for p in trained.values() if p.dim() < 2]


def open_clip(model: nn.Module) -> tuple[list, list]:
    """OpenCLIP's training script: vectors and some names are excluded."""

    def excluded(n, p):
        return p.ndim < 2 or any(part in n for part in ("bn", "ln", "bias", "logit_scale"))

    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [p for n, p in named if not excluded(n, p)], [p for n, p in named if excluded(n, p)]


@pytest.mark.parametrize("recipe", [timm, nanogpt, open_clip])
def test_weight_decay_reaches_every_sparse_weight_and_nothing_else(recipe):
    torch.manual_seed(0)
    model = Net()
    decayed, others = recipe(model)
    expected = [model.conv.weight_values, model.line.weight_values, model.single.weight_values]
    expected.append(model.head.weight)
    assert {id(p) for p in decayed} == {id(p) for p in expected}
    assert len(decayed) + len(others) == len(list(model.parameters()))
    groups = [{"params": decayed, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    before = {p: p.detach().clone() for p in model.parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # then AdamW does nothing but decay
    optimizer.step()
    for p in decayed:
        torch.testing.assert_close(p.detach(), before[p] * (1 - 0.1 * 0.5))
    assert all(torch.equal(p, before[p]) for p in others)


def test_recipes_find_sparse_weights_by_name():
    dense = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    sparse = sparsify(dense, 0.5, preset="all")
    found = [name for name, _ in sparse.named_parameters() if "weight" in name]
    assert found == ["0.weight_values", "2.weight_values"]
    assert len(found) == len([name for name, _ in dense.named_parameters() if "weight" in name])


class Doubled(nn.Module):
    def forward(self, values):
        return 2 * values


def test_parametrize_and_what_cannot_be_rewired_then():
    layer, x = SparseLinear(8, 6, sparsity=0.5), torch.randn(3, 8)
    expected = 2 * (layer(x) - layer.bias) + layer.bias
    parametrize.register_parametrization(layer, "weight_values", Doubled())
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    gradient = layer.parametrizations.weight_values.original.grad
    torch.testing.assert_close(gradient[:, 0], 2 * x.sum(0)[layer.col_indices])
    with pytest.raises(RuntimeError, match="weight_values is not a parameter of its own"):
        swap_pattern(layer, 10)
    model = nn.Sequential(layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="layer '0': weight_values is not a parameter of its own"):
        DSR(model, optimizer)
    parametrize.remove_parametrizations(layer, "weight_values")
    torch.testing.assert_close(layer(x), expected)
    swap_pattern(layer, 10)
    assert layer.nnz == 10


NORMS = [
    (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
    (nn.utils.parametrizations.weight_norm, parametrize.remove_parametrizations),
    (nn.utils.parametrizations.spectral_norm, parametrize.remove_parametrizations),
    (nn.utils.parametrizations.orthogonal, parametrize.remove_parametrizations),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(("norm", "remove"), NORMS, ids=lambda f: f"{f.__module__}.{f.__name__}")
@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: SparseLinear(8, 6, sparsity=0.5), (3, 8)),
        (lambda: SparseConv1d(2, 4, 3), (1, 2, 5)),
        (lambda: SparseConv2d(2, 4, 3), (1, 2, 5, 5)),
    ],
)
def test_a_norm_of_the_list_of_values_is_refused(build, size, norm, remove):
    """A row of [nnz, 1] is one weight, so its norm is |w|; the spectral norm is a vector's."""
    layer, x = build(), torch.randn(size)
    norm(layer, "weight_values")
    with pytest.raises(TypeError, match=rf"{norm.__name__} on weight_values normalises the list"):
        layer(x)
    remove(layer, "weight_values")
    assert layer(x).isfinite().all()


def test_norms_look_for_a_weight():
    for utility in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm):
        with pytest.raises(ValueError, match="'weight'"):
            utility(SparseLinear(8, 6))  # they look for a parameter called `weight`


def test_pruning_by_torch():
    x = torch.randn(3, 8)
    layer = SparseLinear(8, 6, sparsity=0.5)
    prune.l1_unstructured(layer, "weight_values", amount=10)
    assert int((layer.to_dense() != 0).sum()) == layer.nnz - 10
    assert layer(x).shape == (3, 6)
    with pytest.raises(RuntimeError, match=r"\(parametrized or pruned by torch\?\)"):
        swap_pattern(layer, 10)
    with pytest.raises(AttributeError, match="has no dense weight"):
        prune.l1_unstructured(SparseLinear(8, 6), "weight", amount=10)


def test_parameter_dict_and_functional_call():
    layer, x = SparseLinear(8, 6, sparsity=0.5), torch.randn(3, 8)
    kept = nn.ParameterDict({name: p for name, p in layer.named_parameters()})
    assert kept["weight_values"] is layer.weight_values
    tripled = {"weight_values": 3 * kept["weight_values"], "bias": kept["bias"]}
    y = torch.func.functional_call(layer, tripled, (x,))
    torch.testing.assert_close(y - layer.bias, 3 * (layer(x) - layer.bias))
    y.sum().backward()
    torch.testing.assert_close(layer.weight_values.grad[:, 0], 3 * x.sum(0)[layer.col_indices])


def test_initialisation_by_shape_sees_a_fan_in_of_one():
    """The trap that docs/optimizers.md describes, and the two ways around it."""
    layer = SparseLinear(400, 300, sparsity=0.9)
    fans = nn.init._calculate_fan_in_and_fan_out(layer.weight_values)
    assert fans == (1, layer.nnz)
    layer.reset_parameters()
    assert 0.045 < layer.weight_values.abs().max() <= 1 / 400**0.5
    dense = nn.Linear(400, 300)
    nn.init.kaiming_normal_(dense.weight)
    layer = SparseLinear.from_dense(dense, 0.9, keep="random")
    assert abs(layer.weight_values.std() / (2 / 400) ** 0.5 - 1) < 0.05


@pytest.mark.parametrize("how", ["parametrize", "prune"])
def test_a_parametrized_or_pruned_layer_loads_its_own_state(how):
    def made(seed: int) -> SparseLinear:
        generator = torch.Generator().manual_seed(seed)
        linear = SparseLinear(8, 8, nnz=6, generator=generator)
        if how == "prune":
            prune.l1_unstructured(linear, "weight_values", 0.5)
        else:
            parametrize.register_parametrization(linear, "weight_values", Doubled())
        return linear

    one, two = made(0), made(1)
    held = [key for key in one.state_dict() if "weight_values" in key]
    two.load_state_dict(one.state_dict())
    x = torch.randn(3, 8)
    assert torch.equal(one(x), two(x))
    other = SparseLinear(8, 8, nnz=7)
    before = {key: tensor.clone() for key, tensor in two.state_dict().items()}
    for key, tensor in (("col_indices", other.col_indices), (held[0], other.weight_values)):
        state = {**one.state_dict(), key: tensor.detach()}
        with pytest.raises(RuntimeError, match="keeps its 6 non-zeros, but the checkpoint has 7"):
            two.load_state_dict(state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in two.state_dict().items())
    plain = SparseLinear(8, 8, nnz=6)
    with pytest.raises(RuntimeError, match=rf"{held[0]}.*before loading it, or .*before saving"):
        plain.load_state_dict(one.state_dict())


def test_parametrized_layers_are_layers_of_their_own():
    model = nn.Sequential(*(SparseLinear(8, 8, nnz=6) for _ in range(6)))
    for linear in model:
        parametrize.register_parametrization(linear, "weight_values", Doubled())
    assert [layer.name for layer in find_layers(model)] == list("012345")
