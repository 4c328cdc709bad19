"""The same bits every time, on whatever stream, and replayed from a CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers.formats import FORMATS, gradient_of
from helpers.nn_cases import layer, results, same_bits
from torch import Tensor, nn

from dsr_kernels import SparseConv2d, SparseLinear
from dsr_kernels.backends.patterns import patterns

from .cases import DTYPES, LARGE, on_device
from .device import DEVICE, ON_CUDA, cuda_only, side_stream, synchronize

pytestmark = pytest.mark.gpu
SLEEP = 20_000_000  # cycles, some 10 ms


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["129 images, stride 2", "blocks of channels", "1 x 1", "stem"])
def test_the_same_bits_twice_and_on_another_stream(name: str, dtype: torch.dtype) -> None:
    conv, x = on_device(name, dtype)
    for of in FORMATS["NCHW"][0], FORMATS["channels_last"][0]:
        grad = of(gradient_of(conv, x))
        first = results(conv, of(x), grad)
        patterns.clear()
        assert same_bits(first, results(conv, of(x), grad))
        with side_stream():
            second = results(conv, of(x), grad)
        synchronize()
        assert same_bits(first, second)


@pytest.mark.parametrize("name", ["32 wide of WRN", "7 wide of ResNet"])
def test_large_sums_have_the_same_bits(name: str) -> None:
    conv, x = on_device(name, torch.float32, LARGE)
    grad = gradient_of(conv, x)
    first = results(conv, x, grad)
    assert all(same_bits(first, results(conv, x, grad)) for _ in range(3))


@cuda_only
def test_kernels_wait_for_what_their_stream_computes_before() -> None:
    conv, x = on_device("16 wide", torch.float32)
    grad = gradient_of(conv, x)
    expected = results(conv, x, grad)
    late_x, late_grad = torch.zeros_like(x), torch.zeros_like(grad)
    torch.cuda.synchronize()
    with side_stream():
        torch.cuda._sleep(SLEEP)
        late_x.copy_(x)
        late_grad.copy_(grad)
        late = results(conv, late_x, late_grad)
        torch.cuda.current_stream().synchronize()
    assert same_bits(expected, late)


@cuda_only
def test_two_streams_at_once_do_not_share_a_workspace() -> None:
    problems = [on_device(name, torch.float32) for name in ("16 wide", "blocks and stride")]
    grads = [gradient_of(conv, x) for conv, x in problems]
    expected = [results(*problem, grad) for problem, grad in zip(problems, grads, strict=True)]
    streams = [torch.cuda.Stream() for _ in problems]
    torch.cuda.synchronize()
    for _ in range(20):
        both = []
        for stream, problem, grad in zip(streams, problems, grads, strict=True):
            with torch.cuda.stream(stream):
                both.append(results(*problem, grad))
        torch.cuda.synchronize()
        assert all(map(same_bits, expected, both))


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    options = {"sparsity": 0.6, "generator": generator}
    model = nn.Sequential(
        SparseConv2d(3, 9, 3, padding=1, **options),
        nn.ReLU(),
        SparseConv2d(9, 7, 3, stride=2, **options),
        nn.ReLU(),
        nn.Flatten(),
        SparseLinear(7 * 9, 5, **options),
    )
    return model.to(DEVICE)


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    loss = (model(x).float() - 1).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def captured(step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """(replay, the loss it writes); on the CPU the step itself is called."""
    if ON_CUDA:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step()
        return graph.replay, loss
    loss = torch.zeros(())
    return lambda: loss.copy_(step()), loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_replayed_cuda_graph_equals_eager_steps(dtype: torch.dtype) -> None:
    """Forward, backward and SGD in one graph; then eager again, which must not use its memory."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    batches = torch.randn(6, 10, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    x = batches[0].clone()

    def step(model: nn.Module = model, optimizer=optimizer, x: Tensor = x) -> Tensor:
        low = dtype == torch.bfloat16
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=low, cache_enabled=False):
            return training_step(model, optimizer, x)

    with side_stream():
        for _ in range(3):  # momentum exists, plans are built
            step()
    synchronize()
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    replay, loss = captured(step)
    losses, twin_losses = [], []
    for batch in batches:
        x.copy_(batch)
        replay()
        losses.append(loss.clone())
        twin_losses.append(step(twin, twin_optimizer, batch))
    assert same_bits(losses, twin_losses)
    assert len({loss.item() for loss in losses}) == len(losses)
    del replay
    for batch in batches:
        assert same_bits([step(x=batch)], [step(twin, twin_optimizer, batch)])
    assert same_bits([*model.parameters()], [*twin.parameters()])


@cuda_only
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_a_layer_of_another_gpu_than_the_current_one() -> None:
    conv, x = on_device("16 wide", torch.float32)
    grad = gradient_of(conv, x)
    expected = results(conv, x, grad)
    conv.to("cuda:1")
    there = results(conv, x.to("cuda:1"), grad.to("cuda:1"))
    assert torch.cuda.current_device() == DEVICE.index
    assert all(t.device == torch.device("cuda:1") for t in there)
    assert same_bits(expected, there)


@cuda_only
def test_nothing_waits_for_the_device() -> None:
    """No pass synchronizes once its plan exists."""
    conv = layer(8, 12, 3, padding=1).to(DEVICE)
    x = torch.randn(9, 8, 11, 7, device=DEVICE)
    grad = gradient_of(conv, x)
    results(conv, x, grad)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(conv, x, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
