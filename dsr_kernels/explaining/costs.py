"""Milliseconds of a sparse layer beside its dense twin: by the cost model, or measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dsr_kernels.backends.processor import dense_bf16_by
from dsr_kernels.explaining.calls import Call
from dsr_kernels.explaining.explanation import LayerCost, LayerPass

SIDE = 512  # of the matrices whose product tells what dense bfloat16 reaches
ROUNDS = 3


def compared_in() -> str:
    """The precision a forward pass has here, as far as dense is concerned: "fp32" or "bf16"."""
    autocast = torch.is_autocast_enabled("cpu")
    return "bf16" if autocast and torch.get_autocast_dtype("cpu") == torch.bfloat16 else "fp32"


def dense_bf16_gflops() -> float | None:
    """What a product of two bfloat16 matrices reaches here; None where oneDNN takes none."""
    if dense_bf16_by() is None:
        return None
    one = torch.ones(SIDE, SIDE, dtype=torch.bfloat16)
    with torch.no_grad():
        (taken,) = _milliseconds([lambda: one @ one])
    return 2e-6 * SIDE**3 / taken


def by_model(
    name: str, call: Call, passes: Sequence[LayerPass], peak: float, bf16: float | None
) -> LayerCost:
    """Forward, grad-input and grad-weight, of which the last is taken to cost what forward does.

    `peak` is the float32 peak in GF/s, which dense is taken to reach, and `bf16` what it does in
    bfloat16.
    """
    layer = call.layer
    outputs = call.y.numel() // max(layer.weight_shape[0], 1)
    by_pass = {
        row.operation: 2e-6 * layer.nnz * outputs / row.expected_gflops
        if row.expected_gflops
        else 0.0
        for row in passes
    }
    dense = 3 * 2e-6 * layer.numel * outputs
    item = layer.weight_values.element_size()
    return LayerCost(
        layer=name,
        input_shape=tuple(call.given.shape),
        ours=2 * by_pass["forward"] + by_pass["grad_input"],
        ours_bf16=None,
        dense=dense * item / 4 / peak,
        dense_bf16=None if bf16 is None else dense / bf16,
        compared_in=compared_in(),
    )


def measured(name: str, call: Call) -> LayerCost:
    """Times the layer and its dense twin, in turn, on random numbers. Nothing of the layer changes.

    Takes the memory of the dense weight. Raises TypeError where the layer has no dense twin, as
    with hooks on it.
    """
    layer, dense = call.layer, call.layer.dense_module()
    with torch.autocast("cpu", enabled=False):
        runs = [_step(layer, call.given, False), _step(dense, call.given, False)]
        if dense_bf16_by() is not None:
            runs += [_step(layer, call.given, True), _step(dense, call.given, True)]
        taken = _milliseconds(runs)
    ours_bf16, dense_bf16 = taken[2:] or (None, None)
    return LayerCost(
        layer=name,
        input_shape=tuple(call.given.shape),
        ours=taken[0],
        ours_bf16=ours_bf16,
        dense=taken[1],
        dense_bf16=dense_bf16,
        compared_in=compared_in(),
    )


def _step(layer: nn.Module, given: Tensor, bf16: bool) -> Callable[[], object]:
    """Forward and backward of a layer, without its hooks and without a .grad."""
    parameters = [p for p in layer.parameters() if p.requires_grad]
    x = _random_like(given, torch.bfloat16 if bf16 else next(layer.parameters()).dtype)
    x.requires_grad_()

    def run() -> object:
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = layer.forward(x)
            return torch.autograd.grad(y.sum(), [x, *parameters])

    return run


def _random_like(given: Tensor, dtype: torch.dtype) -> Tensor:
    """Random numbers with the sizes and strides of `given`: what a layer packs depends on these."""
    pairs = zip(given.shape, given.stride(), strict=True)
    held = 1 + sum((size - 1) * stride for size, stride in pairs) if given.numel() else 0
    numbers = torch.randn(held, generator=torch.Generator(), dtype=torch.float32)
    return numbers.to(dtype).as_strided(given.shape, given.stride())


def _milliseconds(runs: Sequence[Callable[[], object]]) -> list[float]:
    """The fastest of a few rounds in which the runs take turns, after one that does not count."""
    taken = [float("inf")] * len(runs)
    for each in range(ROUNDS + 1):
        for index, run in enumerate(runs):
            start = time.perf_counter()
            run()
            elapsed = 1e3 * (time.perf_counter() - start)
            if each:
                taken[index] = min(taken[index], elapsed)
    return taken
