"""Optimizers that take [nnz, 1] for a matrix are refused; Adafactor is not one of them."""

from __future__ import annotations

import pytest
import torch
from helpers.rewire_models import make_model, train
from torch import nn

from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import DSR, Static


class Fake(torch.optim.SGD):
    """Any optimizer, as a rewirer sees it: class names, groups and state."""

    def __init__(self, groups, **defaults):
        super().__init__(groups, lr=0.1)
        for group in self.param_groups:
            for key, value in defaults.items():
                group.setdefault(key, value)


def named(name: str, base: type = Fake) -> type:
    return type(name, (base,), {})


def grouped(model: nn.Module, flags: dict, others: dict | None = None) -> list[dict]:
    sparse = [p for name, p in model.named_parameters() if name.endswith("weight_values")]
    dense = [p for name, p in model.named_parameters() if not name.endswith("weight_values")]
    return [{"params": sparse, **flags}, {"params": dense, **(others or {})}]


@pytest.mark.parametrize(
    "name",
    [
        "Muon",
        "SingleDeviceMuon",
        "NorMuon",
        "Shampoo",
        "DistributedShampoo",
        "SOAP",
        "Kron",
        "ForeachPSGDKron",
        "Dion",
        "Scion",
        "GaLore",
    ],
)
@pytest.mark.parametrize("subclass", [False, True])
def test_matrix_rules_are_refused_by_the_name_of_their_class(name, subclass):
    model = make_model()
    kind = named("Mine", named(name)) if subclass else named(name)
    message = (
        rf"optimizer: {kind.__name__} updates the weight_values of layer '0' as a matrix \({name}\)"
    )
    with pytest.raises(ValueError, match=message):
        DSR(model, kind(model.parameters()))


FLAGS = {  # class, flags of the group that has the sparse weights, what makes it a matrix's
    "Keller Jordan's": ("MuonWithAuxAdam", {"use_muon": True}, {"use_muon": False}),
    "any class with its flag": ("Mixed", {"use_muon": True}, {"use_muon": False}),
    "timm's": ("Muon", {"use_fallback": False}, {"use_fallback": True}),
    "Dion's": ("Dion", {"algorithm": "dion"}, {"algorithm": "adamw"}),
    "GaLore's": ("AdamW", {"rank": 4, "update_proj_gap": 200, "proj_type": "std"}, {}),
    "APOLLO's": ("AdamW", {"rank": 1, "proj": "random", "update_proj_gap": 200}, {}),
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags_of_the_group_decide(case):
    name, matrix, entry_by_entry = FLAGS[case]
    model = make_model()
    with pytest.raises(ValueError, match=r"as a matrix .*; put them into a group that is updated"):
        DSR(model, named(name)(grouped(model, matrix, entry_by_entry)))
    optimizer = named(name)(grouped(model, entry_by_entry, matrix))
    train(model, optimizer, DSR(model, optimizer, prune_fraction=0.2, every=2), 4)


def test_flags_of_the_state_decide():
    """Moonlight's Muon notes on each parameter whether it is one of its own."""
    model = make_model()
    optimizer = named("Muon")(model.parameters())
    for p in model.parameters():
        optimizer.state[p]["use_muon"] = False
    rewirer = DSR(model, optimizer, prune_fraction=0.2, every=2)
    train(model, optimizer, rewirer, 4)
    optimizer.state[model[3].weight_values]["use_muon"] = True
    with pytest.raises(ValueError, match=r"layer '3' as a matrix \(use_muon=True\)"):
        rewirer.rewire()


def test_frozen_layers_and_optimizers_of_dense_weights_are_no_concern():
    model = make_model()
    model[3].weight_values.requires_grad_(False)
    flags = {"use_muon": True}
    frozen = {"params": [model[3].weight_values], **flags}
    others = {"params": [model[0].weight_values, model[0].bias], "use_muon": False}
    optimizer = named("Muon")([frozen, others])
    rewirer = DSR(model, optimizer)
    model[3].weight_values.requires_grad_(True)  # thawed
    with pytest.raises(ValueError, match="layer '3' as a matrix"):
        rewirer.rewire()
    assert Static(model, None) is not None


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9")
def test_the_muon_of_torch():
    model = make_model()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    with pytest.raises(ValueError, match=r"Muon updates the weight_values of layer '0' as a mat"):
        DSR(model, torch.optim.Muon(matrices))
    sparse = [model[0].weight_values, model[3].weight_values]
    rest = [p for p in model.parameters() if all(p is not w for w in (*sparse, model[4].weight))]
    muon, adamw = torch.optim.Muon([model[4].weight]), torch.optim.AdamW([*sparse, *rest])
    rewirer = DSR(model, adamw, prune_fraction=0.2, every=2)
    for _ in range(4):
        train(model, muon, Static(model, None), 1)
        train(model, adamw, rewirer, 1)
    assert rewirer.rewires == 2


# --- Adafactor ------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="torch before 2.5")
def test_adafactor_moves_its_state_with_the_survivors():
    model = make_model()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    rewirer = DSR(model, optimizer, prune_fraction=0.2, every=3)
    train(model, optimizer, rewirer, 2)
    for _ in range(3):
        old = {layer: known(layer, optimizer) for layer in (model[0], model[3])}
        assert rewirer.rewire().pruned > 0
        for layer, before in old.items():
            after = known(layer, optimizer)
            grown = set(after) - set(before)
            assert grown and all(after[p] == (0.0, 0.0) for p in grown)
            assert all(after[p] == before[p] for p in set(after) & set(before))
            row = optimizer.state[layer.weight_values]["row_var"]
            assert column(layer, optimizer).item() == pytest.approx(row.mean().item(), rel=1e-6)
        train(model, optimizer, rewirer, 2)
        for layer in old:
            assert layer.weight_values.isfinite().all()


def known(layer, optimizer) -> dict[int, tuple[float, float]]:
    """Position -> value and row factor."""
    row = optimizer.state[layer.weight_values]["row_var"]
    assert row.shape == layer.weight_values.shape
    numbers = zip(layer.weight_values.flatten().tolist(), row.flatten().tolist(), strict=True)
    return dict(zip(layer.topology.linear_positions().tolist(), numbers, strict=True))


def column(layer, optimizer) -> torch.Tensor:
    factor = optimizer.state[layer.weight_values]["col_var"]
    assert factor.shape == (1, 1)
    return factor


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="torch before 2.5")
def test_adafactor_updates_a_column_as_it_updates_a_vector():
    vector = nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0)))
    matrix = nn.Parameter(vector.detach().clone()[:, None])
    optimizer = torch.optim.Adafactor([vector, matrix], lr=0.05)
    for i in range(20):
        vector.grad = torch.randn(50, generator=torch.Generator().manual_seed(i))
        matrix.grad = vector.grad[:, None].clone()
        optimizer.step()
        torch.testing.assert_close(matrix[:, 0], vector)


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="torch before 2.5")
def test_adafactor_on_a_layer_of_one_weight_that_grows():
    """Where nnz is 1 its column factor has the shape of a number per entry."""
    torch.manual_seed(0)
    model = nn.Sequential(SparseLinear(8, 6, nnz=1), SparseLinear(6, 4, nnz=18))
    with torch.no_grad():
        model[0].weight_values.fill_(5.0)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    rewirer = DSR(model, optimizer, prune_fraction=0.5, threshold="exact", allocation="M")
    counts = set()
    for _ in range(6):
        model(torch.randn(5, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        counts.add(model[0].nnz)
        rewirer.rewire()
        assert column(model[0], optimizer).shape == (1, 1)
        assert model[0].weight_values.isfinite().all()
    assert 1 in counts and max(counts) > 1


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="torch before 2.5")
def test_adafactor_on_a_layer_of_one_block_that_grows() -> None:
    """Its column factor then has the shape of its values."""
    torch.manual_seed(0)
    model = nn.Sequential(
        SparseLinear(8, 8, nnz=4, block_size=4), SparseLinear(8, 4, nnz=24, block_size=4)
    )
    with torch.no_grad():
        model[0].weight_values.fill_(5.0)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    rewirer = DSR(model, optimizer, prune_fraction=0.5, threshold="exact", allocation="M")
    counts = set()
    for _ in range(6):
        model(torch.randn(5, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        counts.add(model[0].blocks)
        rewirer.rewire()
        assert optimizer.state[model[0].weight_values]["col_var"].shape == (1, 4)
        assert model[0].weight_values.isfinite().all()
    assert 1 in counts and max(counts) > 1


def test_state_with_one_dimension_moves_too():
    """transformers' Adafactor keeps the row factor as [nnz] and the column factor as [1]."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rewirer = DSR(model, optimizer, prune_fraction=0.3)
    train(model, optimizer, Static(model, None), 1)
    layer, before = model[3], model[3].topology.linear_positions().tolist()
    state = optimizer.state[layer.weight_values]
    state["exp_avg_sq_row"] = torch.arange(1.0, layer.nnz + 1)
    state["exp_avg_sq_col"] = torch.tensor([7.0])
    rewirer.rewire()
    expected = {p: i + 1.0 for i, p in enumerate(before)}
    found = layer.topology.linear_positions().tolist()
    assert state["exp_avg_sq_row"].tolist() == [expected.get(p, 0.0) for p in found]
    mean = state["exp_avg_sq_row"].mean().item()
    assert state["exp_avg_sq_col"].tolist() == pytest.approx([mean])


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="torch before 2.5")
def test_adafactor_steps_after_a_rewire_as_its_rule_for_vectors_does():
    """A rewire that leaves small weights' factors out changes the mean of the others."""
    torch.manual_seed(0)
    layer = SparseLinear(50, 40, nnz=1000, dtype=torch.float64)
    optimizer = torch.optim.Adafactor(layer.parameters(), lr=0.01)
    rewirer = DSR(layer, optimizer, prune_fraction=0.5, threshold="exact")
    for _ in range(20):
        layer(torch.randn(8, 50, dtype=torch.float64)).square().sum().backward()
        layer.weight_values.grad[:500] *= 1e-3
        optimizer.step()
        optimizer.zero_grad()
    rewirer.rewire()
    state = optimizer.state[layer.weight_values]
    vector = nn.Parameter(layer.weight_values.detach().flatten().clone())
    plain = torch.optim.Adafactor([vector], lr=0.01)
    plain.state[vector] = {
        "step": state["step"].clone(),
        "variance": state["row_var"][:, 0].clone(),
    }
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        grad = torch.randn(1000, generator=generator, dtype=torch.float64)
        vector.grad, layer.weight_values.grad = grad, grad[:, None].clone()
        layer.bias.grad = None
        plain.step()
        optimizer.step()
        torch.testing.assert_close(layer.weight_values[:, 0], vector, rtol=1e-9, atol=1e-12)
