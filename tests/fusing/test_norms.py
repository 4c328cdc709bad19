"""Every kind and state of batch norm: fused where that is right, else left to compute by itself."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.fused_models import Counts, check_same, images, sparse_pair, step
from torch import nn

import dsr_kernels
from dsr_kernels import SparseConv2d
from dsr_kernels.fusing import norms
from dsr_kernels.models import wrn_28
from dsr_kernels.ops.fused.elementwise import channel_moments


def chain(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=True), norm, nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
    )


def set_momentum(norm, value):
    norm.momentum = value


FUSED = {
    "plain": lambda: nn.BatchNorm2d(6),
    "momentum=None": lambda: nn.BatchNorm2d(6, momentum=None),
    "momentum=0.7": lambda: nn.BatchNorm2d(6, momentum=0.7),
    "momentum=0": lambda: nn.BatchNorm2d(6, momentum=0.0),
    "eps=0.5": lambda: nn.BatchNorm2d(6, eps=0.5),
    "no running statistics": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    "affine=False": lambda: nn.BatchNorm2d(6, affine=False),
    "bare": lambda: nn.BatchNorm2d(6, affine=False, track_running_stats=False),
}


class Scaled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


LEFT = {
    "group norm": lambda: nn.GroupNorm(2, 6),
    "subclass": lambda: Scaled(6),
    "instance norm": lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
def test_kinds_that_are_fused(name, mode, monkeypatch):
    torch.manual_seed(0)
    fused, plain = sparse_pair(chain(FUSED[name]()))
    for model in (fused, plain):
        model.train(mode != "eval")
        if mode == "frozen":
            model[1].eval().requires_grad_(False)
    for seed in range(3):
        x = images() + seed
        with monkeypatch.context() as patched:
            counts = Counts().install(patched)
            found = step(fused, x)
        assert counts["batch_norm"] == 0
        check_same(found, step(plain, x), 1e-9)


@pytest.mark.parametrize("name", LEFT)
def test_kinds_that_compute_by_themselves(name):
    torch.manual_seed(0)
    fused, plain = sparse_pair(chain(LEFT[name]()))
    for mode in (True, False):
        fused.train(mode), plain.train(mode)
        check_same(step(fused, images()), step(plain, images()), 1e-9)
    report = dsr_kernels.fuse(fused, verbose=False)
    assert "1" in [row.layer for row in report.left]


def test_sync_batch_norm_is_left_and_said():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(chain(nn.BatchNorm2d(6)))
    dsr_kernels.sparsify(model, 0.5, inplace=True, preset="all")
    report = dsr_kernels.fuse(model, verbose=False)
    (row, _) = (row for row in report.left if row.what == "SyncBatchNorm")
    assert row.note == "only BatchNorm2d is fused"
    model.eval()
    expected = dsr_kernels.unfuse(copy.deepcopy(model))(images(torch.float32))
    torch.testing.assert_close(model(images(torch.float32)), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda norm: norm.eval(),
        lambda norm: set_momentum(norm, None),
        lambda norm: set_momentum(norm, 0.9),
        lambda norm: setattr(norm, "eps", 0.1),
        lambda norm: setattr(norm, "track_running_stats", False),
        lambda norm: norm.requires_grad_(False),
        lambda norm: norm.reset_running_stats(),
        lambda norm: setattr(norm, "running_mean", None) or setattr(norm, "running_var", None),
        lambda norm: setattr(norm, "bias", None),
    ],
)
def test_what_is_changed_after_fusing_counts(change):
    torch.manual_seed(0)
    fused, plain = sparse_pair(chain(nn.BatchNorm2d(6)))
    for model in (fused, plain):
        change(model[1])
    for _ in range(2):
        check_same(step(fused, images()), step(plain, images()), 1e-9)


def test_one_value_per_channel_is_torchs_own_error():
    fused = dsr_kernels.sparsify(chain(nn.BatchNorm2d(6)), 0.5, preset="all")
    dsr_kernels.fuse(fused, verbose=False)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        fused(torch.randn(1, 3, 5, 5))
    fused.eval()
    assert fused(torch.randn(1, 3, 5, 5)).shape == (1, 4, 1, 1)


@pytest.mark.parametrize("mode", [True, False])
def test_an_empty_batch_is_what_it_is_to_torch(mode):
    fused, plain = sparse_pair(chain(nn.BatchNorm2d(6)), torch.float32)
    fused.train(mode), plain.train(mode)

    def outcome(model):
        try:
            return model(torch.randn(0, 3, 8, 8)).shape
        except (ValueError, RuntimeError) as error:
            return type(error)

    assert outcome(fused) == outcome(plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_batch_leaves_gradients_of_zero(dtype):
    """A frozen batch norm in front of a convolution: no kernel fills the sums of no image."""
    norm = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    model = dsr_kernels.sparsify(norm, sparsity=0.5, preset="all")
    dsr_kernels.fuse(model, verbose=False)
    model[0].eval()
    torch.empty(2**16).fill_(torch.nan)  # what fresh memory may hold
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        model(torch.randn(0, 8, 4, 4, requires_grad=True)).float().sum().backward()
    assert all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("shape", [(3, 9, 9), (2, 4, 9, 9), (2, 3, 2, 9)])
def test_inputs_that_do_not_fit_are_refused_as_before(shape):
    fused, plain = sparse_pair(chain(nn.BatchNorm2d(6)), torch.float32)
    messages = []
    for model in (fused, plain):
        with pytest.raises((ValueError, RuntimeError)) as error:
            model(torch.randn(shape))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_nan_and_inf_pass_as_in_torch():
    fused, plain = sparse_pair(chain(nn.BatchNorm2d(6)), torch.float32)
    x = images(torch.float32)
    x[0, 0, 3, 3], x[1, 1, 4, 4] = torch.nan, torch.inf
    for mode in (True, False):
        outputs = [model.train(mode)(x) for model in (fused, plain)]
        assert torch.equal(*[y.isnan() for y in outputs])


def test_a_graph_outlives_the_next_update_of_the_running_statistics():
    torch.manual_seed(0)
    fused, plain = sparse_pair(chain(nn.BatchNorm2d(6)))
    for model in (fused, plain):
        model[1].eval()
    losses = [model(images()).square().sum() for model in (fused, plain)]
    fused[1].train()
    fused(images() + 1)
    for loss in losses:
        loss.backward()
    expected = plain[0].weight_values.grad
    torch.testing.assert_close(fused[0].weight_values.grad, expected, rtol=1e-9, atol=1e-9)


def test_the_same_batch_norm_twice_in_a_forward_is_updated_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(self.conv(torch.relu(self.bn(self.conv(x)))))

    fused, plain = sparse_pair(Twice())
    check_same(step(fused, images()), step(plain, images()), 1e-9)
    assert fused.bn.num_batches_tracked == 2


def test_statistics_of_a_large_mean_are_stable():
    torch.manual_seed(0)
    fused, plain = sparse_pair(chain(nn.BatchNorm2d(6)), torch.float32)
    with torch.no_grad():
        for model in (fused, plain):
            model[0].bias += 1000
    exact = copy.deepcopy(plain).double()
    x = images(torch.float32)
    expected = exact(x.double())
    error = (plain(x) - expected).abs().max()
    assert (fused(x) - expected).abs().max() <= 4 * error + 1e-5


def test_a_fused_layer_keeps_its_type():
    fused, _ = sparse_pair(chain(nn.BatchNorm2d(6)))
    assert type(fused[0]) is SparseConv2d
    assert isinstance(fused, nn.Sequential)


def test_no_statistics_of_the_packages_models_take_a_pass_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even where one norm alone goes on with a sum: the last of each group of blocks."""
    passes: list[torch.Size] = []

    def counted(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        passes.append(x.shape)
        return channel_moments(x)

    monkeypatch.setattr(norms, "channel_moments", counted)
    model = wrn_28(1, sparsity=0.9)
    dsr_kernels.fuse(model)
    model(torch.randn(2, 3, 8, 8))
    assert passes == []
    model.group1[0].conv2.register_forward_hook(lambda *_: None)  # it computes by itself now
    model(torch.randn(2, 3, 8, 8))
    assert len(passes) == 1
