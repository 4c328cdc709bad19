"""What a method may give as scores: the native engine reads their memory as it is."""

import copy

import pytest
import torch
from helpers.nn_cases import states_equal
from torch import nn

from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import DSR


@pytest.mark.parametrize(
    "scores",
    [
        lambda weights: weights[:3],
        lambda weights: weights[:, None],
        lambda weights: weights.repeat_interleave(2)[::2],
        lambda weights: weights.half(),
    ],
)
def test_scores_that_are_not_one_number_for_each_entry_are_refused(scores):
    class Wrong(DSR):
        def _scores(self, layers):
            return [scores(layer.magnitudes()) for layer in layers]

    model = nn.Sequential(SparseLinear(16, 12), nn.ReLU(), SparseLinear(12, 8))
    before = copy.deepcopy(model)
    rewirer = Wrong(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1)
    with pytest.raises(ValueError, match=r"layer '0': expected contiguous float32 .* scores"):
        rewirer.rewire()
    assert states_equal(model, before)
