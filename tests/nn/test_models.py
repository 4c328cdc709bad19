"""The models: what is sparse, how many parameters, how they are drawn, that they train."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dsr_kernels.models import lenet_300_100, resnet18, resnet50, wrn_28
from dsr_kernels.models.layers import weight_shape, weight_tensors
from dsr_kernels.nn import SparseConv2d, SparseLinear, named_sparse_modules


def counts(model):
    """(positions in sparse tensors, dense parameters, learnable parameters)."""
    sparse = dict(named_sparse_modules(model))
    positions = sum(math.prod(m.weight_shape) for m in sparse.values())
    nonzeros = sum(m.nnz for m in sparse.values())
    learnable = sum(p.numel() for p in model.parameters())
    return positions, learnable - nonzeros, learnable


def test_wrn_28_2_has_the_published_parameter_counts():
    model = wrn_28(2, 0.9)
    positions, dense, learnable = counts(model)
    assert (positions, dense) == (1_451_520, 16_090)
    layers = [math.prod(m.weight_shape) for _, m in named_sparse_modules(model)]
    assert len(layers) == 24
    assert [m.nnz for _, m in named_sparse_modules(model)] == [n // 10 for n in layers]
    # The published 161,241 applies .1 (as the double 1 - 0.9) to the total. Layer by layer, as the
    # paper's initialisation has it, the floors lose twelve more.
    assert 16_090 + math.floor((1 - 0.9) * positions) == 161_241
    assert learnable == 16_090 + sum(n // 10 for n in layers) == 161_241 - 12


def test_resnet50_has_the_published_parameter_counts():
    model = resnet50(0.9)
    positions, dense, learnable = counts(model)
    assert (positions, dense) == (22_724_608, 2_832_424)
    assert round(learnable / 1e6, 2) == 5.10
    assert isinstance(model.fc, SparseLinear) and isinstance(model.stem, nn.Conv2d)


def test_resnet50_at_80_percent_has_the_published_size():
    assert round(counts(resnet50(0.8))[2] / 1e6, 2) == 7.38


def test_lenet_is_sparse_throughout_and_has_no_biases():
    model = lenet_300_100(0.95)
    positions, dense, _ = counts(model)
    assert (positions, dense) == (266_200, 820)
    assert all(module.bias is None for _, module in named_sparse_modules(model))
    assert isinstance(list(model.modules())[-1], nn.BatchNorm1d)


def test_resnet18_has_the_known_parameter_count():
    model = resnet18(0.9)
    positions, dense, _ = counts(model)
    assert positions + dense == 11_689_512 and (positions, dense) == (11_497_472, 192_040)
    for name, module, _ in weight_tensors(model):
        sparse = isinstance(module, (SparseConv2d, SparseLinear))
        assert sparse == (name != "stem" and "downsample" not in name), name
    assert model.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 1000)


@pytest.mark.parametrize("build", [lenet_300_100, wrn_28, resnet18, resnet50])
def test_dense_twin_has_the_same_layers_and_shapes(build):
    sparse, dense = build(sparsity=0.98), build(sparse=False)
    shapes = [{name: weight_shape(m) for name, m, _ in weight_tensors(x)} for x in (sparse, dense)]
    assert shapes[0] == shapes[1]
    assert not list(named_sparse_modules(dense))
    positions, others, _ = counts(sparse)
    assert counts(dense)[2] == positions + others


def test_wrn_stem_shortcuts_and_classifier_are_dense():
    for name, module, _ in weight_tensors(wrn_28(2, 0.9)):
        sparse = isinstance(module, (SparseConv2d, SparseLinear))
        assert sparse == (".conv" in name), name


def test_initialisation_is_the_papers_and_not_rescaled_for_sparsity():
    model = wrn_28(2, 0.9, generator=torch.Generator().manual_seed(1))
    values = model.group3[3].conv2.weight_values  # 3x3 to 128 channels, 14,745 non-zeros
    expected = math.sqrt(2 / (9 * 128))
    assert values.std().item() == pytest.approx(expected, rel=0.03)
    assert abs(values.mean().item()) < 0.05 * expected
    lenet = lenet_300_100(0.9)
    bound = 1 / math.sqrt(784)
    assert 0.99 * bound < lenet.fc1.weight_values.abs().max() <= bound
    assert lenet.fc1.weight_values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert torch.equal(model.bn.weight, torch.ones(128))


@pytest.mark.parametrize("build", [lenet_300_100, wrn_28])
def test_generator_fixes_pattern_and_values(build):
    def weights(seed):
        return build(generator=torch.Generator().manual_seed(seed)).state_dict()

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[k], other[k]) for k in first if k.endswith("col_indices"))


def test_initialisation_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    wrn_28(0.25, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("channels,classes,side", [(1, 10, 28), (3, 7, 32)])
def test_wrn_takes_other_images_and_channels_last(channels, classes, side):
    model = wrn_28(0.5, 0.9, in_channels=channels, num_classes=classes).eval()
    x = torch.randn(2, channels, side, side)
    expected = model(x)
    assert expected.shape == (2, classes)
    model.to(memory_format=torch.channels_last)
    got = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_sparse_wrn_equals_its_dense_twin_with_the_same_weights():
    """The whole network, forward and backward, against torch's own layers."""
    generator = torch.Generator().manual_seed(5)
    sparse = wrn_28(0.5, 0.8, generator=generator, dtype=torch.float64)
    dense = wrn_28(0.5, sparse=False, dtype=torch.float64)
    state = sparse.state_dict()
    for name, module in named_sparse_modules(sparse):
        for part in ("weight_values", "crow_indices", "col_indices", "dense_shape"):
            del state[f"{name}.{part}"]
        state[f"{name}.weight"] = module.to_dense().detach()
    dense.load_state_dict(state)
    x, y = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.tensor([1, 2, 3, 4])
    F.cross_entropy(sparse(x), y).backward()
    F.cross_entropy(dense(x), y).backward()
    twin = dict(dense.named_modules())
    for name, module in named_sparse_modules(sparse):
        rows = torch.repeat_interleave(
            torch.arange(module.weight_shape[0]), module.crow_indices.long().diff()
        )
        expected = twin[name].weight.grad.flatten(1)[rows, module.col_indices.long()]
        torch.testing.assert_close(module.weight_values.grad[:, 0], expected, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(sparse.stem.weight.grad, dense.stem.weight.grad)


def test_resnet50_takes_a_training_step_at_224():
    model = resnet50(0.9, generator=torch.Generator().manual_seed(0))
    largest = max(math.prod(m.weight_shape) for _, m in named_sparse_modules(model))
    assert (
        max(p.numel() for n, p in model.named_parameters() if ".weight_values" in n) < largest // 5
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    before = model.fc.weight_values.detach().clone()
    loss = F.cross_entropy(model(torch.randn(2, 3, 224, 224)), torch.tensor([3, 999]))
    loss.backward()
    optimizer.step()
    assert math.isfinite(loss.item())
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    assert not torch.equal(model.fc.weight_values, before)
    state = sum(s["momentum_buffer"].numel() for s in optimizer.state.values())
    assert state == counts(model)[2]


def test_wrong_arguments_name_themselves():
    with pytest.raises(ValueError, match=r"sparsity: expected 0 <= sparsity < 1, got 1\.5"):
        wrn_28(2, 1.5)
    with pytest.raises(ValueError, match=r"block_size: expected one of \(1, 2, .* got 3"):
        wrn_28(2, block_size=3)
    with pytest.raises(ValueError, match="width: expected a positive number, got 0"):
        wrn_28(0)
    with pytest.raises(ValueError, match="width: expected a positive number, got -1"):
        lenet_300_100(width=-1)
