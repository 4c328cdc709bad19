"""The layers as modules on a GPU: moved, copied, saved; under autocast; what they refuse."""

from __future__ import annotations

import copy
from io import BytesIO

import pytest
import torch
import torch.nn.functional as F
from helpers.nn_cases import ARGUMENTS, check_layer, layer, same_bits, states_equal
from helpers.op_cases import OPS, problem
from torch import nn

from dsr_kernels import SparseConv1d, SparseConv2d, SparseLinear, densify, explain, sparsify
from dsr_kernels.models import wrn_28

from .device import DEVICE, ON_CUDA, cuda_only

pytestmark = pytest.mark.gpu
ELSEWHERE = "cpu" if ON_CUDA else "meta"
LOW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def model_and_input() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        SparseConv2d(3, 8, 3, padding=1, sparsity=0.5),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        SparseConv2d(8, 16, 3, stride=2, padding=1, sparsity=0.7, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        SparseLinear(16 * 16, 4, sparsity=0.5),
    )
    return model, torch.randn(32, 3, 8, 8)


# --- moved, copied, saved ---


def test_there_and_back_again() -> None:
    conv, x = layer(**ARGUMENTS), torch.randn(2, 6, 8, 8)
    before, state = conv(x), copy.deepcopy(conv.state_dict())
    parameter = conv.weight_values
    conv.to(DEVICE)
    assert conv.weight_values is parameter
    assert all(t.device == DEVICE for t in conv.state_dict().values())
    assert conv.crow_indices.dtype == conv.col_indices.dtype == torch.int32
    check_layer(conv, x.to(DEVICE))
    conv.cpu()
    assert all(torch.equal(t, state[name]) for name, t in conv.state_dict().items())
    assert torch.equal(conv(x), before)


@pytest.mark.parametrize("length", [9, 40, 1500])
def test_sequences_are_images_of_height_1(length: int) -> None:
    torch.manual_seed(0)
    conv = SparseConv1d(6, 9, 5, padding="same", groups=3, sparsity=0.5, device=DEVICE)
    check_layer(conv, torch.randn(2, 6, length, device=DEVICE))


def test_built_on_the_device() -> None:
    one, two = (
        SparseConv2d(16, 24, 3, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(3))
        for _ in range(2)
    )
    assert states_equal(one, two)
    with torch.device(DEVICE):
        linear = SparseLinear(300, 70)
    with torch.device("meta"):
        empty = SparseConv2d(16, 24, 3)
    empty.to_empty(device=DEVICE).reset_parameters()
    from_cpu = SparseConv2d(16, 24, 3, device=DEVICE, generator=torch.Generator().manual_seed(3))
    on_cpu = SparseConv2d(16, 24, 3, generator=torch.Generator().manual_seed(3))
    assert states_equal(from_cpu.cpu(), on_cpu)
    for module in one, linear, empty:
        assert module.weight_values.device == module.col_indices.device == DEVICE
        module.topology.validate()
    assert linear.weight_values.abs().max() <= 300**-0.5
    check_layer(empty, torch.randn(2, 16, 5, 5, device=DEVICE))


def test_copies_are_whole_and_independent() -> None:
    conv, x = layer(**ARGUMENTS).to(DEVICE), torch.randn(2, 6, 8, 8, device=DEVICE)
    expected = conv(x)
    buffer = BytesIO()
    torch.save(conv, buffer)
    buffer.seek(0)
    for twin in copy.deepcopy(conv), torch.load(buffer, weights_only=False):
        assert twin.weight_values.device == DEVICE
        assert torch.equal(twin(x), expected)
        with torch.no_grad():
            twin.weight_values.zero_()
        assert torch.equal(conv(x), expected)


def test_state_goes_from_device_to_device() -> None:
    one, two = layer(**ARGUMENTS, seed=1).to(DEVICE), layer(**ARGUMENTS, seed=2, sparsity=0.4)
    two.load_state_dict(one.state_dict())
    assert two.weight_values.device.type == "cpu"
    assert states_equal(copy.deepcopy(one).cpu(), two)
    one.load_state_dict(layer(**ARGUMENTS, seed=3, sparsity=0.2).state_dict())
    assert one.weight_values.device == one.col_indices.device == DEVICE
    check_layer(one, torch.randn(2, 6, 8, 8, device=DEVICE))
    buffer = BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    two.load_state_dict(torch.load(buffer, map_location="cpu", weights_only=True))
    assert states_equal(copy.deepcopy(one).cpu(), two)


def test_sparsify_and_densify_on_the_device() -> None:
    dense = wrn_28(0.5, sparse=False).to(DEVICE).eval()
    for keep in ("magnitude", "random"):
        sparse = sparsify(copy.deepcopy(dense), sparsity=0.8, keep=keep, preset="all")
        assert all(p.device == DEVICE for p in sparse.parameters())
        x = torch.randn(2, 3, 16, 16, device=DEVICE)
        torch.testing.assert_close(
            sparse(x), densify(copy.deepcopy(sparse))(x), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_optimizers_train_it(kind: str, fused: bool) -> None:
    model, x = model_and_input()
    model, x, target = model.to(DEVICE), x.to(DEVICE), torch.arange(32, device=DEVICE) % 4
    options = {"lr": 0.1, "momentum": 0.9} if kind == "SGD" else {"lr": 0.02}
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options, fused=fused)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(x), target))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_compiled_in_one_graph() -> None:
    model, x = model_and_input()
    model, x = model.to(DEVICE).eval(), x.to(DEVICE)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    assert model[0].weight_values.grad is not None


# --- low precision ---


@LOW
def test_autocast_casts_activations_and_keeps_weights(dtype: torch.dtype) -> None:
    conv = layer(**ARGUMENTS).to(DEVICE)
    x = torch.randn(2, 6, 8, 8, device=DEVICE, requires_grad=True)
    with torch.autocast(DEVICE.type, dtype):
        y = conv(x)
    assert y.dtype == dtype
    grad = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, conv.weight_values, conv.bias), grad)
    assert all(t.dtype == torch.float32 for t in ours)
    low = x.detach().to(dtype).requires_grad_()
    expected = torch.autograd.grad(conv(low), (low, conv.weight_values, conv.bias), grad)
    assert same_bits([*ours], [expected[0].float(), *expected[1:]])


@LOW
def test_training_under_autocast_with_a_gradient_scaler(dtype: torch.dtype) -> None:
    model, x = model_and_input()
    model, x, target = model.to(DEVICE), x.to(DEVICE), torch.arange(32, device=DEVICE) % 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=dtype == torch.float16)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, dtype):
            loss = F.cross_entropy(model(x), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    if dtype == torch.float16:
        with torch.no_grad():  # an overflow is found in the values' gradient, and the step skipped
            x[0] = 6e4
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        scaler.scale(model[0](x).square().sum() * 1e30).backward()
        scaler.step(optimizer)
        assert same_bits(before, [p.detach() for p in model.parameters()])


# --- what is refused ---


@pytest.mark.parametrize("which", range(5), ids=["input", "values", "bias", "crow", "col"])
def test_arguments_on_two_devices_are_named(which: int) -> None:
    *args, shape = problem(torch.float32, requires_grad=False, device=DEVICE)
    args[which] = args[which].to(ELSEWHERE)
    name = ("input", "values", "bias", "crow_indices", "col_indices")[which]
    with pytest.raises(ValueError, match=f"SparseConv2d: .*{name} on {ELSEWHERE}"):
        OPS.sparse_conv2d(*args, *shape)


def test_gradients_on_two_devices_are_named() -> None:
    x, values, bias, crow, col, shape = problem(torch.float32, requires_grad=False, device=DEVICE)
    grad = torch.zeros_like(OPS.sparse_conv2d(x, values, bias, crow, col, *shape))
    elsewhere = grad.to(ELSEWHERE)
    with pytest.raises(ValueError, match=f"SparseConv2d: .*gradient on {ELSEWHERE}"):
        OPS.sparse_conv2d_grad_weight(x, elsewhere, crow, col, *shape, torch.float32)
    with pytest.raises(ValueError, match=f"SparseConv2d: .* on {ELSEWHERE}"):
        size = x.shape[1:]
        OPS.sparse_conv2d_grad_input(elsewhere, values, crow, col, size, *shape, False)


def test_errors_name_the_layer_and_the_argument() -> None:
    conv, linear = layer(64, 32, 3).to(DEVICE), SparseLinear(8, 4, device=DEVICE)
    low = copy.deepcopy(conv).half()
    for module, x, error, message in (
        (conv, torch.zeros(8, 32, 9, 9), ValueError, "SparseConv2d: .* with 64 channels, got 32"),
        (conv, torch.zeros(2, 64, 2, 9), ValueError, "SparseConv2d: .*at least 3 x 3.*got 2 x 9"),
        (conv, torch.zeros(2, 64, 9, 9).double(), TypeError, "SparseConv2d: .*input of dtype"),
        (low, torch.zeros(1, 64, 9, 9).half(), TypeError, "SparseConv2d: .*autocast"),
        (linear, torch.zeros(3, 7), ValueError, "SparseLinear: .* with 8 features, got 7"),
        (linear, torch.zeros(3, 8).int(), TypeError, "SparseLinear: .*input of dtype"),
    ):
        with pytest.raises(error, match=message):
            module(x.to(DEVICE))


@cuda_only
def test_explain_is_about_the_cpu() -> None:
    model, x = model_and_input()
    with pytest.raises(ValueError, match=r"on the CPU.*is on cuda"):
        explain(model.to(DEVICE), x.shape)
