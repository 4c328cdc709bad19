"""sparsify(example_input=...): a forward pass tells which layers have to stay dense, or should."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dsr_kernels import (
    SparseConv2d,
    SparseLinear,
    densify,
    explain,
    named_sparse_modules,
    probe,
    sparsify,
)


class Reader(nn.Module):
    """Reads one layer's weight in both modes, another's in eval mode, and embeds tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.plain = nn.Linear(8, 8)
        self.read = nn.Linear(8, 8)
        self.read_later = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.cache: torch.Tensor | None = None

    def forward(self, tokens, scale=None):
        self.seen += 1
        self.cache = x = self.plain(self.embed(tokens))
        x = F.linear(x, self.read.weight * (1 if scale is None else scale), self.read.bias)
        if not self.training:
            assert self.read_later.weight.dtype == x.dtype
        return self.head(self.read_later(x + torch.rand(())))


TOKENS = torch.tensor([[1, 2, 9]])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "example", [TOKENS, (TOKENS,), {"tokens": TOKENS, "scale": torch.tensor(2.0)}]
)
def test_layers_whose_weight_is_read_stay_dense_with_a_warning(example, training):
    model = Reader().train(training)
    classes = [type(m) for m in model.modules()]
    with pytest.warns(UserWarning, match="read, read_later: the model's own code reads its weight"):
        sparse = sparsify(model, 0.5, example_input=example)
    assert [name for name, _ in named_sparse_modules(sparse)] == ["plain"]
    assert sparse(TOKENS).shape == (1, 3, 3)
    assert [type(m) for m in model.modules()] == classes
    assert (model.seen == 0) and model.cache is None and model.training is training


def test_nothing_of_the_model_or_of_torchs_random_numbers_changes():
    model, numbers = Reader(), torch.get_rng_state()
    probe.run(model, probe.Inputs.of_example(TOKENS))
    assert torch.equal(torch.get_rng_state(), numbers)
    assert model.seen == 0 and model.cache is None


class Changing(nn.Module):
    """Changes whatever a module can hold; its way may depend on numbers."""

    def __init__(self, computes: bool) -> None:
        super().__init__()
        self.fc, self.head, self.computes = nn.Linear(4, 4), nn.Linear(4, 2), computes
        self.code, self.moved = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        self.n, self.seen, self.by_name = torch.zeros(2), [], {"all": [torch.zeros(2)]}
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.code.data.mul_(0.5)
        self.n += 1
        self.count += 1
        self.seen.append(x)
        self.by_name["all"][0] += 1
        self.by_name["all"].append(x)
        self.by_name["last"] = x
        if self.computes and x.sum().item() > 100:
            raise RuntimeError("too much")
        if self.computes:
            self.moved.data = self.moved.data * 2
        return self.head(self.fc(x) + self.n.sum() + self.by_name["all"][0].sum())


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("computes", [False, True])
def test_what_a_forward_changes_in_its_model_is_put_back(computes, fails):
    model, example = Changing(computes), torch.full((2, 4), 100.0 if fails else 1.0)
    memory = {name: p.data_ptr() for name, p in model.named_parameters()}
    held = dict(vars(model))
    first = model.by_name["all"][0]
    if computes and fails:
        with pytest.raises(ValueError, match="too much"):
            sparsify(model, 0.5, preset="all", example_input=example)
    else:
        sparse = sparsify(model, 0.5, preset="all", example_input=example)
        explain(sparse, example_input=example)
        assert torch.equal(sparse.code, torch.ones(3)) and sparse.seen == []
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == memory
    assert all(vars(model)[name] is value for name, value in held.items())
    assert torch.equal(model.code, torch.ones(3)) and torch.equal(model.moved, torch.ones(3))
    assert type(model.n) is torch.Tensor and model.n.sum() == 0 and model.count == 0
    assert model.seen == [] and [*model.by_name] == ["all"]
    assert model.by_name["all"] == [first] and type(first) is torch.Tensor and first.sum() == 0


def test_without_an_example_the_error_names_the_layer_and_the_way_out():
    sparse = sparsify(Reader(), 0.5)
    said = r"layer 'read': a SparseLinear has no dense weight.*exclude=\['read'\]"
    with pytest.raises(AttributeError, match=said):
        sparse(TOKENS)
    with pytest.raises(ValueError, match=r"^example_input: the model does not run on .*" + said):
        explain(sparse, example_input=TOKENS)


def test_a_model_whose_way_depends_on_numbers_runs_on_the_example_itself():
    class Moody(nn.Sequential):
        def forward(self, x):
            x *= 2  # not the caller's
            return super().forward(x) if x.sum().item() > 5 else self[0].weight.sum()

    model = Moody(nn.Linear(4, 4), nn.Linear(4, 2))
    example = torch.full((2, 4), 3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(model, 0.5, example_input=example)
    assert torch.equal(example, torch.full((2, 4), 3.0))
    with pytest.warns(UserWarning, match="0: the model's own code reads"):
        sparsify(model, 0.5, preset="all", example_input=torch.zeros(2, 4))


def test_a_wrong_example_is_named_and_nothing_has_changed():
    model = Reader()
    with pytest.raises(ValueError, match=r"^example_input: the model does not run on \(2, 4\)"):
        sparsify(model, example_input=torch.zeros(2, 4), inplace=True)
    for wrong in (3, "tokens", (), {"tokens": [1, 2]}):
        with pytest.raises(TypeError, match=r"^example_input: expected what the model is called"):
            sparsify(model, example_input=wrong, inplace=True)
    assert not list(named_sparse_modules(model))
    assert type(model.read) is nn.Linear


def test_where_faster_leaves_dense_what_loses_by_the_cost_model():
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 8),
    )
    x = torch.randn(8, 3, 16, 16)
    options = {"overrides": {"1": 0.0}, "example_input": x, "where": "faster"}
    sparse = sparsify(model, 0.95, **options)
    assert type(sparse[1]) is nn.Conv2d  # all multiply-adds, none in registers
    assert type(sparse[2]) is SparseConv2d
    assert "2" not in explain(sparse, (8, 3, 16, 16)).leave_dense
    everywhere = sparsify(model, 0.95, **(options | {"where": "everywhere"}))
    assert "1" in explain(everywhere, (8, 3, 16, 16)).leave_dense
    with pytest.raises(ValueError, match="where: 'faster' needs example_input"):
        sparsify(model, where="faster")
    with pytest.raises(ValueError, match=r"to convert: .*0: it would be slower sparse"):
        sparsify(
            nn.Sequential(nn.Linear(8, 8)),
            0.0,
            example_input=x[0, 0, :2, :8],
            where="faster",
            preset="all",
        )


def test_a_layer_as_the_model_may_be_shown_an_example():
    assert type(sparsify(nn.Linear(8, 8), example_input=torch.zeros(2, 8))) is SparseLinear


class Named(nn.Module):
    """Calls its layers by keyword, as torch's layers allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.row = nn.Conv1d(8, 8, 1)
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        h = self.row(input=self.conv(input=x).flatten(2))
        return self.linear(input=h.transpose(1, 2))


def test_layers_that_are_called_by_keyword():
    model, x = Named(), torch.randn(2, 3, 4, 4)
    options = {"preset": "all", "example_input": x}
    sparse = sparsify(model, 0.5, keep="magnitude", **options)
    assert len(list(named_sparse_modules(sparse))) == 3
    torch.testing.assert_close(sparse(x), densify(sparse)(x))
    with pytest.raises(ValueError, match="conv, row, linear: it would be slower sparse"):
        sparsify(model, 0.0, where="faster", **options)
    found = explain(sparse, example_input=x, measure=True).costs
    assert [cost.input_shape for cost in found] == [(2, 3, 4, 4), (2, 8, 16), (2, 16, 8)]
