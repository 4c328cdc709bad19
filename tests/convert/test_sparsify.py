"""sparsify, densify and summary on models of every build."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dsr_kernels import (
    SparseConv1d,
    SparseConv2d,
    SparseLinear,
    densify,
    named_sparse_modules,
    sparsify,
    summary,
)
from dsr_kernels.distribution import budget
from dsr_kernels.nn.carry_over import WHY_DENSE


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, (1, 3), padding="same", groups=2)

    def forward(self, x):
        return x + self.conv2(torch.relu(self.bn(self.conv1(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect")
        self.shared = Block(8)
        self.stages = nn.ModuleList([Block(8), self.shared, nn.Sequential(Block(8), self.shared)])
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


def counts(model: nn.Module) -> tuple[int, int]:
    layers = [module for _, module in named_sparse_modules(model)]
    return sum(m.nnz for m in layers), sum(m.numel for m in layers)


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
@pytest.mark.parametrize("keep", ["random", "magnitude"])
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9, 0.95])
def test_hits_the_budget_exactly_and_computes_what_its_dense_twin_computes(
    distribution, keep, sparsity
):
    net = Net()
    before = copy.deepcopy(net.state_dict())
    sparse = sparsify(net, sparsity, distribution, keep=keep, preset="all")
    nnz, numel = counts(sparse)
    assert nnz == budget(numel, sparsity)
    assert all(torch.equal(net.state_dict()[key], before[key]) for key in before)
    assert not any(isinstance(m, (nn.Conv2d, nn.Linear)) for m in sparse.modules())
    x = torch.randn(2, 3, 9, 8)
    dense = densify(sparse)
    assert [name for name, _ in dense.named_modules()] == [name for name, _ in net.named_modules()]
    torch.testing.assert_close(dense.eval()(x), sparse.eval()(x))
    if sparsity == 0.0:
        torch.testing.assert_close(sparse(x), net.eval()(x))


def test_shared_modules_stay_shared():
    sparse = sparsify(Net(), preset="all")
    assert sparse.shared is sparse.stages[1] is sparse.stages[2][1]
    assert isinstance(sparse.shared.conv1, SparseConv2d)
    dense = densify(sparse)
    assert dense.shared.conv1 is dense.stages[1].conv1


def test_inplace_and_a_layer_as_model():
    net = Net()
    assert sparsify(net, inplace=True, preset="all") is net
    assert counts(net)[0] > 0
    assert densify(net, inplace=True) is net
    assert counts(net) == (0, 0)
    assert isinstance(sparsify(nn.Linear(8, 8), preset="all"), SparseLinear)
    assert type(densify(SparseLinear(8, 8))) is nn.Linear


def test_exclude_and_overrides_by_glob():
    sparse = sparsify(
        Net(),
        0.9,
        "erk",
        exclude=["stem", "head"],
        overrides={"*.conv2": 0.5, "stages.0": 0.5},
        preset="all",
    )
    assert isinstance(sparse.stem, nn.Conv2d)
    assert isinstance(sparse.head, nn.Linear)
    own = [sparse.stages[0].conv1, sparse.stages[0].conv2, sparse.shared.conv2]
    assert all(m.nnz == m.numel // 2 for m in own)
    rest = [sparse.shared.conv1, sparse.stages[2][0].conv1]
    assert sum(m.nnz for m in rest) == budget(sum(m.numel for m in rest), 0.9)


def test_a_glob_may_name_a_container_or_an_alias():
    sparse = sparsify(Net(), exclude=["stages.2"], preset="all")
    assert isinstance(sparse.shared.conv1, nn.Conv2d)  # it is stages.2.1 as well
    assert isinstance(sparse.stages[2][0].conv1, nn.Conv2d)
    assert isinstance(sparse.stages[0].conv1, SparseConv2d)


@pytest.mark.parametrize("argument", ["exclude", "overrides"])
def test_globs_that_fit_nothing_are_errors_with_the_closest_names(argument):
    wrong = ["haed"] if argument == "exclude" else {"haed": 0.5}
    with pytest.raises(ValueError, match=rf"{argument}: 'haed' fits no .*closest names are head"):
        sparsify(Net(), **{argument: wrong}, preset="all")


def test_refuses_the_impossible():
    with pytest.raises(ValueError, match="overrides: layer stem is given several sparsities"):
        sparsify(Net(), overrides={"stem": 0.5, "st*m": 0.6}, preset="all")
    with pytest.raises(ValueError, match=r"no nn\.Conv1d, nn\.Conv2d or nn\.Linear to convert"):
        sparsify(nn.ReLU(), preset="all")
    with pytest.raises(ValueError, match="keep: unknown value"):
        sparsify(Net(), keep="largest", preset="all")
    with pytest.raises(ValueError, match="distribution: unknown value"):
        sparsify(Net(), distribution="ER", preset="all")


def test_a_weight_that_cannot_be_ranked_names_its_layer_and_changes_nothing():
    net = Net()
    net.head.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer 'head': weight: expected finite values"):
        sparsify(net, keep="magnitude", inplace=True, preset="all")
    assert counts(net) == (0, 0)


def test_layers_that_cannot_be_converted_stay_dense_with_a_warning():
    model = nn.Sequential(
        nn.Linear(8, 8),
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
        nn.MultiheadAttention(8, 2),
        nn.TransformerEncoderLayer(8, 2, 16),
        nn.Embedding(10, 8),
        nn.Linear(8, 10, bias=False),
    )
    model[5].weight = model[4].weight
    with pytest.warns(UserWarning, match="these layers stay dense") as record:
        sparse = sparsify(model, 0.5, preset="all")
    text = str(record[0].message)
    assert "1: its weight is parametrized" in text
    assert "5: its weight is shared with 4" in text
    assert "2.out_proj, 3.self_attn.out_proj: the module it is in reads its weight" in text
    assert "2, 3.self_attn: its input projections are in no layer that could be sparse" in text
    names = [name for name, _ in named_sparse_modules(sparse)]
    assert names == ["0", "3.linear1", "3.linear2"]
    x = torch.randn(3, 2, 8)
    assert sparse[3].eval()(x).shape == x.shape
    assert sparse[2](x, x, x)[0].shape == x.shape
    assert "shared with" in str(summary(sparse))


def test_same_generator_same_model():
    one, two = (
        sparsify(Net(), generator=torch.Generator().manual_seed(3), preset="all").state_dict()
        for _ in range(2)
    )
    keys = [key for key in one if key.endswith("indices")]
    assert keys
    assert all(torch.equal(one[key], two[key]) for key in keys)


def test_summary_counts_what_is_there():
    sparse = sparsify(Net(), 0.9, exclude=["stem"], preset="all")
    table = summary(sparse)
    nnz, numel = counts(sparse)
    assert (table.sparse_nnz, table.sparse_numel) == (nnz, numel)
    assert table.sparsity == 1 - nnz / numel
    tensors = [*sparse.parameters(), *(b for n, b in sparse.named_buffers() if "indices" in n)]
    assert table.bytes == sum(t.nbytes for t in tensors)
    assert table.dense_bytes == sum(p.nbytes for p in Net().parameters())
    text = str(table)
    for part in ("stem", "excluded by 'stem'", "SparseLinear", "8x8x3x3", "total", "sparsity 0.9"):
        assert part in text
    header, _, *rows = text.splitlines()
    for line, layer in zip(rows[:-3], table.layers, strict=True):
        assert line.startswith(layer.name) and line.index(layer.kind) == header.index("kind")
    assert "shared" in text
    assert "stages.1" not in text  # the shared block is listed once


def test_summary_of_a_dense_model_and_of_one_without_parameters():
    assert summary(Net()).sparse_numel == 0
    assert summary(Net()).bytes == summary(Net()).dense_bytes
    assert summary(nn.ReLU()).layers == []
    assert "total" in str(summary(nn.ReLU()))


def test_training_a_sparsified_model():
    torch.manual_seed(0)
    model = sparsify(Net(), 0.8, "erk", preset="all")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, target = torch.randn(16, 3, 8, 8), torch.randint(5, (16,))
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("inplace", [True, False])
def test_a_note_alone_is_written_onto_the_layers_that_stay_dense(inplace):
    net = Net()
    before = {name: set(vars(module)) for name, module in net.named_modules()}
    sparse = sparsify(net, exclude=["stem", "*.conv1"], inplace=inplace, preset="all")
    found = []
    for name, module in sparse.named_modules():
        if not hasattr(module, "weight_values"):
            found += [name] if set(vars(module)) == before[name] | {WHY_DENSE} else []
            assert set(vars(module)) - {WHY_DENSE} == before[name]
    assert found == ["stem", "shared.conv1", "stages.0.conv1", "stages.2.0.conv1"]
    assert inplace or {n: set(vars(m)) for n, m in net.named_modules()} == before


def test_summary_says_why_a_layer_is_dense_as_far_as_that_can_be_known():
    class Scaled(nn.Linear):
        pass

    def notes(model: nn.Module) -> list[str]:
        return [layer.note for layer in summary(model).layers if not layer.sparse]

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), Scaled(4, 4), nn.BatchNorm1d(4))
    subclass = "Scaled is a subclass of nn.Linear and may compute something else"
    other = "not a convolution or linear layer"
    assert notes(model) == ["", "", subclass, other]
    with pytest.warns(UserWarning, match="these layers stay dense: 2: Scaled"):
        sparse = sparsify(model, 0.5, exclude=["1"], preset="all")
    assert notes(sparse) == ["excluded by '1'", subclass, other]
    assert notes(model) == ["", "", subclass, other]
    assert notes(copy.deepcopy(sparse)) == ["excluded by '1'", subclass, other]
    thawed = sparsify(sparse, 0.5, exclude=["2"], preset="all")
    assert notes(thawed) == ["excluded by '2'", other]


def test_convolutions_of_one_dimension_are_converted():
    model = nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU(), nn.Conv1d(6, 2, 5, padding="same"))
    sparse = sparsify(model, 0.5, preset="all")
    assert [type(module) for module in sparse] == [SparseConv1d, nn.ReLU, SparseConv1d]
    x = torch.randn(3, 4, 9)
    torch.testing.assert_close(densify(sparse)(x), sparse(x))
