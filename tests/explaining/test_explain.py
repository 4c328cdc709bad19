"""explain(model, input_shape): the plans a model's layers really use, and nothing of it changed."""

import copy
import random

import pytest
import torch
from helpers.explain_cases import small, state_of
from torch import nn

import dsr_kernels
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.explaining import explanation
from dsr_kernels.models import lenet_300_100, wrn_28
from dsr_kernels.nn import SparseConv2d, SparseLinear


def test_a_row_for_each_layer_and_pass_in_order(monkeypatch):
    monkeypatch.setattr(explanation, "dense_bf16_by", lambda: None)
    found = dsr_kernels.explain(small(), (4, 3, 8, 8))
    assert [(row.layer, row.operation) for row in found.rows] == [
        (name, operation) for name in "035" for operation in ("forward", "grad_input")
    ]
    assert [row.input_shape for row in found.rows[::2]] == [
        (4, 3, 8, 8),
        (4, 8, 8, 8),
        (4, 384, 1, 1),
    ]
    for row in found.rows:
        assert row.nnz > 0 and 0.8 < row.sparsity < 1 and row.expected_gflops > 0
        assert min(row.values_bytes, row.index_bytes, row.plan_bytes, row.workspace_bytes) > 0
        assert row.variant.startswith(f"{row.lanes} {row.tile[0]}x{row.tile[1]}, ")
    lines = str(found).splitlines()
    assert "expected" not in lines[0]
    said = lines[2 + len(found.rows)]
    assert found.isa in said and f"{found.threads} threads" in said


@pytest.mark.parametrize("by", ["AMX", "AVX512-BF16", "fp32", None])
def test_where_dense_would_probably_be_faster_is_said(monkeypatch, by):
    monkeypatch.setattr(explanation, "dense_bf16_by", lambda: by)
    full = SparseConv2d(16, 16, 3, padding=1, sparsity=0.0)
    thin = SparseConv2d(16, 16, 3, padding=1, sparsity=0.95)
    empty = SparseConv2d(16, 4, 3, nnz=0)
    found = dsr_kernels.explain(nn.Sequential(full, thin, empty), (64, 16, 16, 16))
    lines = str(found).splitlines()
    said = "dense float32, if it reached that peak, would be faster in: 0 (forward), 0 (grad_input)"
    assert said in lines
    for row in found.rows[:4]:
        positions = 16 * 16 * 9
        expected = row.expected_gflops / found.peak_gflops * positions / row.nnz
        assert row.over_dense == pytest.approx(expected)
    assert found.rows[-1].over_dense > 1
    warned = [line for line in lines if "bfloat16" in line]
    if by in ("AMX", "AVX512-BF16"):
        assert len(warned) == 1 and f"runs by {by} here" in warned[0]
    else:
        assert not warned
    assert "faster in: no pass" in str(dsr_kernels.explain(thin, (64, 16, 16, 16)))


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_the_plans_are_those_that_the_layers_use(mode):
    """After explain(), running the model forward and backward builds no plan that it had not."""
    model = small(mode)
    patterns.clear()
    dsr_kernels.explain(model, (4, 3, 8, 8))
    known = len(patterns.plans())
    model(torch.randn(4, 3, 8, 8, requires_grad=True)).sum().backward()
    assert len(patterns.plans()) == known


def test_taps_that_meet_only_padding_are_told_of():
    model = nn.Sequential(
        SparseConv2d(4, 5, 3, padding=99, dilation=99, sparsity=0.5),
        SparseConv2d(5, 6, 2, padding=40, dilation=40, sparsity=0.5),
        SparseConv2d(6, 3, 2, padding=200, dilation=400),
    )
    patterns.clear()
    rows = dsr_kernels.explain(model, (4, 4, 8, 8)).rows
    known = len(patterns.plans())
    model(torch.randn(4, 4, 8, 8, requires_grad=True)).sum().backward()
    assert len(patterns.plans()) == known
    middle, _, parts, *_, nothing = rows
    assert (
        middle.reason == "1 of 9 taps reaches 64 of 64 pixels; pointwise: an image is one long row"
    )
    assert parts.reason.startswith("4 of 4 taps reach 256 of 2304 pixels in 4 parts; ")
    assert parts.plan_bytes > middle.plan_bytes > 0 and parts.workspace_bytes > 0
    assert (nothing.lanes, nothing.variant, nothing.tile) == ("none", "none", (0, 0))
    assert nothing.reason == "no tap meets the image"
    assert nothing.expected_gflops == nothing.plan_bytes == nothing.workspace_bytes == 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("data_dependent", [False, True])
def test_nothing_of_the_model_changes(training, data_dependent):
    class Moody(nn.Sequential):
        def forward(self, x):
            if data_dependent and x.sum().item() > 1e9:
                return x
            self.get_buffer("seen").add_(1)
            return super().forward(x) + torch.rand(())

    model = Moody(*small(), nn.Identity())
    model.register_buffer("seen", torch.zeros(()))
    model.train(training)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, numbers = state_of(model), (torch.get_rng_state(), random.getstate())
    rows = dsr_kernels.explain(model, (4, 3, 8, 8)).rows
    assert len(rows) == 6
    after = state_of(model)
    assert before[1:] == after[1:]
    for name, (identity, version, value) in before[0].items():
        assert after[0][name][:2] == (identity, version), name
        torch.testing.assert_close(after[0][name][2], value, rtol=0, atol=0)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), numbers[0]) and random.getstate() == numbers[1]


def test_no_dense_weight_and_no_activation_is_made():
    """A layer whose dense weight would take 4 TB, and an input of 16 GB."""
    layer = SparseConv2d(1 << 17, 1 << 17, (8, 8), padding=4, nnz=1000, bias=False)
    (forward, _) = dsr_kernels.explain(layer, (128, 1 << 17, 16, 16)).rows
    assert forward.layer == "(model)" and forward.nnz == 1000
    assert forward.values_bytes == 4000


def test_the_reason_is_the_choice():
    conv = SparseConv2d(8, 8, 3, padding=1)
    lanes = {}
    for batch, width in ((128, 32), (128, 200), (3, 200)):
        row = dsr_kernels.explain(conv, (batch, 8, 8, width)).rows[0]
        chosen = _C.choose_lanes(
            batch, True, width, width, (3, 3), (1, 1), (1, 1), (1, 1), "float32"
        )
        assert row.lanes == chosen
        lanes[batch, width] = row.lanes, row.reason
    assert lanes[128, 200] == ("batch", "128 images fill 100 % of the lanes")
    if lanes[128, 32][0] == "row":
        assert lanes[128, 32][1] == "rows of 32 px turn in registers"
    if _C.isa() != "portable":
        assert lanes[3, 200][0] == "plane" and "a batch of 3 would leave" in lanes[3, 200][1]
    pointwise = dsr_kernels.explain(SparseConv2d(8, 8, 1), (2, 8, 4, 4)).rows[0]
    assert (pointwise.lanes, pointwise.reason[:9]) == ("plane", "pointwise")


def test_a_shared_layer_is_explained_for_each_shape_and_an_unused_one_named():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.spare = SparseConv2d(4, 4, 3), SparseLinear(4, 4)

        def forward(self, x):
            return self.conv(self.conv(x))

    found = dsr_kernels.explain(Loop(), (2, 4, 9, 9))
    assert [row.input_shape[-1] for row in found.rows] == [9, 9, 7, 7]
    assert found.unused == ["spare"] and "spare: not called" in str(found)


def test_the_models_of_the_package_and_copies_of_them():
    for model, shape, layers in ((wrn_28(1), (2, 3, 32, 32), 24), (lenet_300_100(), (4, 784), 3)):
        assert len(dsr_kernels.explain(copy.deepcopy(model), shape).rows) == 2 * layers
    assert len(dsr_kernels.explain(lenet_300_100().double(), (4, 784)).rows) == 6


@pytest.mark.parametrize(
    "shape, error",
    [
        ("4x3", TypeError),
        (4, TypeError),
        ((4, 3.0), TypeError),
        ((), ValueError),
        ((0, 3, 8, 8), ValueError),
        ((4, 3, 8), ValueError),
        ((4, 5, 8, 8), ValueError),
    ],
)
def test_a_wrong_shape_is_named(shape, error):
    with pytest.raises(error, match=r"^input_shape: "):
        dsr_kernels.explain(small(), shape)


def test_a_tensor_in_place_of_its_shape_is_named_by_its_sizes():
    with pytest.raises(TypeError, match=r"got a tensor, whose sizes are \(4, 3, 8, 8\)$"):
        dsr_kernels.explain(small(), torch.zeros(4, 3, 8, 8))


def test_a_model_without_sparse_layers_is_refused():
    with pytest.raises(ValueError, match=r"^model: expected at least one sparse layer"):
        dsr_kernels.explain(nn.Linear(3, 3), (2, 3))
    with pytest.raises(TypeError, match=r"^model: expected a torch.nn.Module"):
        dsr_kernels.explain(nn.Linear(3, 3).weight, (2, 3))


def test_a_layer_without_a_pattern_is_refused():
    model = nn.Sequential(SparseConv2d(4, 6, 3, device="meta"))
    with pytest.raises(ValueError, match="layer '0': it has no pattern, its tensors are on meta"):
        dsr_kernels.explain(model, (1, 4, 8, 8))
    with pytest.raises(ValueError, match="layer '0'"):
        dsr_kernels.explain(model.to_empty(device="cpu"), (1, 4, 8, 8))


def test_tokens_and_keyword_arguments_can_be_explained():
    class Texts(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix = nn.Embedding(10, 16), SparseLinear(16, 16, sparsity=0.5)

        def forward(self, tokens, mask=None):
            return self.mix(self.embed(tokens)) * (1 if mask is None else mask[..., None])

    tokens = torch.tensor([[1, 2, 3, 9]])
    for example in (tokens, [tokens], {"tokens": tokens, "mask": torch.ones(1, 4)}):
        found = dsr_kernels.explain(Texts(), example_input=example)
        assert [row.layer for row in found.rows] == ["mix", "mix"]
        assert [cost.input_shape for cost in found.costs] == [(1, 4, 16)]
    with pytest.raises(TypeError, match="expected input_shape or example_input, got neither"):
        dsr_kernels.explain(Texts())
    with pytest.raises(TypeError, match="expected input_shape or example_input, got both"):
        dsr_kernels.explain(Texts(), (1, 4), example_input=tokens)
