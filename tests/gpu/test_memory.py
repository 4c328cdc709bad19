"""What training holds on the GPU, by torch's own counters; nothing dense ever exists."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsr_kernels import SparseConv2d, SparseLinear, named_sparse_modules
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.models import resnet50, wrn_28
from dsr_kernels.rewiring import DSR

from .device import DEVICE, ON_CUDA, cuda_only

pytestmark = pytest.mark.gpu
MIB = 2**20
PLAN_BYTES = 80  # of one non-zero, in all plans together: what is derived from a pattern

# model, batch, image, classes
MODELS = {
    "WRN-28-2": (partial(wrn_28, 2), 128, 32, 10),
    "ResNet-50": (resnet50, 16, 224, 1000),
}
# dense float32: 1 GiB and 604 MiB for the weight alone, as much again for gradient and momentum
WIDE = {
    "linear": (lambda: SparseLinear(16384, 16384, sparsity=0.999), (64, 16384)),
    "convolution": (
        lambda: SparseConv2d(4096, 4096, 3, padding=1, sparsity=0.999),
        (4, 4096, 4, 4),
    ),
}


class Training:
    """Momentum SGD on random images, rewired every other step."""

    def __init__(self, model: nn.Module, x: Tensor, classes: int, rewire: bool = True) -> None:
        self.model, self.x = model, x
        self.labels = torch.arange(len(x), device=x.device) % classes
        self.optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
        self.rewirer = DSR(model, self.optimizer, every=2) if rewire else None

    def step(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x).flatten(1), self.labels).backward()
        self.optimizer.step()
        if self.rewirer is not None:
            self.rewirer.step()

    def held(self) -> list[Tensor]:
        """Parameters, gradients, buffers (the indices of sparse layers too) and optimizer state."""
        parameters = [*self.model.parameters()]
        gradients = [p.grad for p in parameters if p.grad is not None]
        states = [v for s in self.optimizer.state.values() for v in s.values()]
        return parameters + gradients + [*self.model.buffers()] + [*filter(torch.is_tensor, states)]


class LargestStorage(TorchDispatchMode):
    """Notes the bytes of the largest storage that any torch operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = (t.untyped_storage().nbytes() for t in tree_leaves(out) if torch.is_tensor(t))
        self.bytes = max(self.bytes, *sizes, 0)
        return out


@pytest.mark.parametrize("name", WIDE)
def test_no_tensor_outside_the_ops_has_the_size_of_the_dense_weight(name: str) -> None:
    make, shape = WIDE[name]
    with LargestStorage() as largest:
        module = make().to(DEVICE)
        x = torch.randn(shape, device=DEVICE, requires_grad=True)
        training = Training(nn.Sequential(module), x, 10)
        for _ in range(3):
            training.step()
    assert training.rewirer.rewires == 1
    assert largest.bytes < module.numel * 4 / 20


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """{"held", "peak"}: bytes by which the allocator's count and its maximum rise inside."""
    gc.collect()
    patterns.clear()  # plans of models that are gone, which the next miss would purge
    result = {"held": 0, "peak": 0}
    if not ON_CUDA:
        yield result
        return
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield result
    torch.cuda.synchronize()
    result["peak"] = torch.cuda.max_memory_allocated() - before
    gc.collect()
    result["held"] = torch.cuda.memory_allocated() - before


@cuda_only
@pytest.mark.parametrize("name", WIDE)
def test_a_wide_layer_trains_in_a_sixteenth_of_its_dense_weight(name: str, note) -> None:
    make, shape = WIDE[name]
    x = torch.randn(shape, device=DEVICE, requires_grad=True)
    Training(nn.Sequential(make().to(DEVICE)), x, 10).step()  # cuBLAS takes its workspace
    with counted() as memory:
        module = make().to(DEVICE)
        training = Training(nn.Sequential(module), x, 10)
        for _ in range(5):
            training.step()
    dense = 4 * module.numel
    note(
        f"{name} of {dense / MIB:.0f} MiB if it were dense, at 99.9 %: trains with SGD and rewires "
        f"in {memory['peak'] / MIB:.1f} MiB, activations included"
    )
    assert training.rewirer.rewires == 2
    assert memory["peak"] < dense / 16


def trained(make: Callable, name: str, rewire: bool) -> tuple[Training, dict[str, int]]:
    _, batch, size, classes = MODELS[name]
    batch, size = (batch, size) if ON_CUDA else (2, 32)
    x = torch.randn(batch, 3, size, size, device=DEVICE)
    with counted() as memory:
        training = Training(make().to(DEVICE), x, classes, rewire)
        for _ in range(3):
            training.step()
    return training, memory


@pytest.mark.parametrize("name", MODELS)
def test_weights_gradients_and_optimizer_state_of_a_model(name: str, note) -> None:
    """What is held is what was asked for, and plans; the peak is hardly higher than dense's."""
    make, batch, *_ = MODELS[name]
    memory, asked = {}, {}
    trained(make, name, rewire=False)  # what libraries keep for themselves is there from now on
    for kind, kwargs in (("dense", {"sparse": False}), ("sparse", {})):
        training, memory[kind] = trained(partial(make, **kwargs), name, rewire=kind == "sparse")
        asked[kind] = sum(t.nbytes for t in training.held())
    modules = [m for _, m in named_sparse_modules(training.model)]
    nnz, numel = sum(m.nnz for m in modules), sum(m.numel for m in modules)
    indices = sum(m.crow_indices.nbytes + m.col_indices.nbytes for m in modules)
    assert nnz <= 0.1 * numel
    saved = 12 * (numel - nnz) - indices  # value, gradient and momentum of every zero
    assert asked["dense"] - asked["sparse"] == saved
    if not ON_CUDA:
        return
    extra = memory["sparse"]["held"] - asked["sparse"]
    note(
        f"{name}, 90 %: weights, gradients, momentum {asked['sparse'] / MIB:.1f} MiB "
        f"({indices / MIB:.1f} of them indices) of dense's {asked['dense'] / MIB:.1f} MiB; plans "
        f"{extra / MIB:.1f} MiB, {extra / nnz:.0f} bytes a non-zero; peak at batch {batch} "
        f"{memory['sparse']['peak'] / MIB:.0f} of {memory['dense']['peak'] / MIB:.0f} MiB"
    )
    rounding = 512 * len(training.held())  # the allocator's unit
    assert extra <= PLAN_BYTES * nnz + rounding + MIB
    assert memory["sparse"]["held"] < memory["dense"]["held"]
    assert memory["sparse"]["peak"] < 1.1 * memory["dense"]["peak"] + 64 * MIB
