"""Whole training steps on a GPU, sparse and dense, their memory, and rewires."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from functools import partial
from statistics import median

import torch
from bench_rewire import resnet50_layers
from torch import nn
from torch.nn import functional as F
from whole_models.training import Training

from dsr_kernels.bench.problem import LAST, float32_as
from dsr_kernels.models import resnet50, wrn_28
from dsr_kernels.rewiring import DSR

from .timing import Clock

WARM_UP = 3  # steps, in which cuDNN also tries its algorithms
STEPS = 20
# model, batch, image, classes
MODELS = {
    "WRN-28-2": (partial(wrn_28, 2), 128, 32, 10),
    "ResNet-50": (resnet50, 64, 224, 1000),
}
SPARSITIES = {"WRN-28-2": (0.9, 0.95), "ResNet-50": (0.9,)}
# name: precision of dense float32 layers, autocast's dtype
OURS = {"ours fp32": ("ieee", None), "ours tf32": ("tf32", None), "ours bf16": ("tf32", "bfloat16")}
DENSE = {
    "dense fp32": ("ieee", None),
    "dense tf32": ("tf32", None),
    "dense bf16": ("tf32", "bfloat16"),
}


class Step(Training):
    """A training step under autocast, or as it is."""

    def __init__(
        self, model: nn.Module, batch: int, size: int, classes: int, dtype: str | None
    ) -> None:
        device = next(model.parameters()).device
        images = torch.randn(batch, 3, size, size, device=device)
        if model.stem.weight.is_contiguous(**LAST) and not model.stem.weight.is_contiguous():
            images = images.to(**LAST)
        super().__init__(model, images, torch.randint(0, classes, (batch,), device=device))
        self.dtype = dtype and getattr(torch, dtype)

    def differentiate(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        enabled, device = self.dtype is not None, self.images.device.type
        with torch.autocast(device, self.dtype, enabled=enabled, cache_enabled=False):
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()


def variants(name: str) -> Iterator[tuple[str, dict, float, str, str | None]]:
    """(name, the model's memory format, sparsity or 0, precision, autocast's dtype)."""
    for sparsity in SPARSITIES[name]:
        for kind, (precision, dtype) in OURS.items():
            yield kind, {}, sparsity, precision, dtype
    for kind, (precision, dtype) in DENSE.items():
        yield f"{kind} channels_last", LAST, 0, precision, dtype
        if name == "WRN-28-2" or kind == "dense fp32":  # elsewhere NCHW is known to be slower
            yield f"{kind} NCHW", {}, 0, precision, dtype


def record(
    name: str,
    kind: str,
    layout: dict,
    sparsity: float,
    precision: str,
    dtype: str | None,
    clock: Clock,
    scale: int,
) -> dict:
    """Times and memory of one variant. `scale` divides batch and image, to try the benchmark."""
    make, batch, size, classes = MODELS[name]
    float32_as(precision)
    before = _allocated(clock)
    model = make(sparsity) if sparsity else make(sparse=False)
    training = Step(model.to(clock.device, **layout), batch // scale, size // scale, classes, dtype)
    stream = torch.cuda.Stream() if clock.cuda else None
    with torch.cuda.stream(stream) if clock.cuda else contextlib.nullcontext():
        for _ in range(WARM_UP if clock.cuda else 1):
            training.step()
    if clock.cuda:
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    steps = STEPS if clock.cuda else 1
    result = {
        "model": name,
        "batch": batch // scale,
        "variant": kind,
        "sparsity": sparsity,
        "ms": clock.step(training.step, steps),
        "held bytes": training.held_bytes(),
        "peak bytes": torch.cuda.max_memory_allocated() - before if clock.cuda else 0,
    }
    result["graph ms"] = _graph(training, clock, steps)
    float32_as("ieee")
    return result


def _allocated(clock: Clock) -> int:
    gc.collect()
    if not clock.cuda:
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def _graph(training: Step, clock: Clock, steps: int) -> dict[str, float] | str:
    """Times of the step replayed from a CUDA graph, or why it could not be captured."""
    if not clock.cuda:
        return "no CUDA"
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            training.step()
        graph.replay()
        return clock.step(graph.replay, steps)
    except RuntimeError as error:
        return str(error).partition("\n")[0][:200]


def rewires(clock: Clock, scale: int) -> Iterator[dict]:
    """Wall times of rewiring a ResNet-50 at 90 %, as the rewirer reports them."""
    for threshold in ("adaptive", "exact"):
        torch.manual_seed(0)
        model = resnet50_layers(0.9).to(clock.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.randn_like(parameter)
        options = {"prune_count": 400_000, "threshold": threshold, "initial_threshold": 0.008}
        rewirer, taken = DSR(model, optimizer, **options), []
        for _ in range(11 if scale == 1 else 2):
            for parameter in model.parameters():
                parameter.data.normal_(std=0.05)
            if clock.cuda:
                torch.cuda.synchronize()
            taken.append(1e3 * rewirer.rewire().seconds)
        times = {"min": round(min(taken[1:]), 3), "median": round(median(taken[1:]), 3)}
        yield {"name": f"rewire ResNet-50, {threshold}", "ms": times, "nnz": rewirer.nnz}
