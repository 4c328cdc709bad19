"""What explain says of time: by the cost model or measured, beside dense."""

import pytest
import torch
from helpers.explain_cases import small, state_of
from torch import nn

import dsr_kernels
from dsr_kernels.explaining import Explanation, LayerCost, costs
from dsr_kernels.nn import SparseConv2d, SparseLinear


def test_milliseconds_are_those_of_the_cost_model_and_add_up(monkeypatch):
    monkeypatch.setattr(costs, "dense_bf16_by", lambda: None)
    model = nn.Sequential(SparseConv2d(8, 16, 3, sparsity=0.9), SparseConv2d(16, 4, 1, nnz=0))
    found = dsr_kernels.explain(model, (4, 8, 10, 10))
    forward, backward = (2e-6 * 115 * 4 * 64 / row.expected_gflops for row in found.rows[:2])
    first, empty = found.costs
    assert first.ours == pytest.approx(2 * forward + backward)
    assert first.dense == pytest.approx(6e-6 * 1152 * 4 * 64 / found.peak_gflops)
    assert (first.dense_bf16, first.ours_bf16, first.compared_in) == (None, None, "fp32")
    assert empty.ours == 0 and empty.dense > 0
    assert found.totals == (first.ours, pytest.approx(first.dense + empty.dense))
    assert not found.measured


def test_layers_to_leave_dense_are_those_that_lose_over_all_their_inputs():
    def cost(name, ours, dense, **options):
        bf16 = {"ours_bf16": None, "dense_bf16": None, "compared_in": "fp32"} | options
        return LayerCost(name, (1,), ours, dense=dense, **bf16)

    costs = [cost("a", 2, 1), cost("a", 1, 4), cost("b", 2, 1), cost("b", 1, 1.5)]
    costs += [cost("c", 1, 9, dense_bf16=0.5, compared_in="bf16"), cost("d", 1, 9, dense_bf16=0.5)]
    found = Explanation([], [], "avx2", 1, 1.0, costs, True)
    assert found.leave_dense == ["b", "c"]
    assert found.totals == (8, 17)
    assert "sparsify(..., exclude=['b', 'c'])" in str(found)
    assert "faster dense" not in str(Explanation([], [], "avx2", 1, 1.0, costs[:2], True))


def test_a_layer_alone_has_no_name_to_exclude():
    found = dsr_kernels.explain(SparseLinear(64, 64, sparsity=0.0), (1, 64))
    assert [cost.layer for cost in found.costs] == ["(model)"]
    assert found.totals[0] > found.totals[1] and "exclude" not in str(found)


@pytest.mark.parametrize("kind", ["channels last", "part", "expanded"])
def test_what_is_timed_has_the_strides_of_the_call(monkeypatch, kind):
    x = {
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "part": torch.randn(2, 3, 8, 10)[:, :, ::2, ::2],
        "expanded": torch.randn(1, 3, 4, 5).expand(2, 3, 4, 5),
    }[kind]
    seen = set()
    forward = SparseConv2d.forward

    def noting(self, input):
        seen.add((input.shape, input.stride()))
        return forward(self, input)

    monkeypatch.setattr(SparseConv2d, "forward", noting)
    dsr_kernels.explain(SparseConv2d(3, 4, 3), example_input=x, measure=True)
    assert seen == {(x.shape, x.stride())}


def test_measuring_times_each_layer_and_changes_nothing():
    model = small("reflect")
    model[3].weight_values.requires_grad_(False)
    model[0].weight_values.grad = torch.ones_like(model[0].weight_values)
    before, numbers = state_of(model), torch.get_rng_state()
    found = dsr_kernels.explain(model, (4, 3, 8, 8), measure=True)
    assert found.measured and [cost.layer for cost in found.costs] == ["0", "3", "5"]
    assert [cost.input_shape for cost in found.costs][::2] == [(4, 3, 8, 8), (4, 384)]
    assert all(cost.ours > 0 and cost.dense > 0 for cost in found.costs)
    assert "measured: " in str(found)
    after = state_of(model)
    assert before[1:] == after[1:] and torch.equal(torch.get_rng_state(), numbers)
    assert torch.equal(model[0].weight_values.grad, torch.ones_like(model[0].weight_values))
    assert model[5].weight_values.grad is None
