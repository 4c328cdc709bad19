"""explain: runs a model once on fake tensors, and asks the kernels about every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.backends.native import _C
from dsr_kernels.explaining import calls, costs
from dsr_kernels.explaining.explanation import ALONE, Explanation
from dsr_kernels.nn.layers import named_sparse_modules
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.probe import Inputs, run


def explain(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    example_input: Any = None,
    measure: bool = False,
) -> Explanation:
    """How each sparse layer of `model` runs on an input, why, and what it costs beside dense.

    The input is one tensor of `input_shape`, batch included, or `example_input`: a tensor, a tuple
    of arguments or a dict of keyword arguments, such as token ids.

    The model runs once without gradients, on fake tensors, which have a shape and no memory, so
    nothing is computed; a model whose way depends on numbers runs on them, or on zeros. Parameters,
    buffers, mode, gradients, torch's random numbers and the tensors, lists, dicts and sets that
    modules have as attributes stay as they are. Takes 0.1 s for the peak.

    Milliseconds are those of the cost model, beside a dense twin that reaches its peak: it rarely
    does, so this errs on the side of dense. `measure=True` times each layer and its twin instead,
    one after another, in a few forward and backward passes on random numbers. What decides is
    bfloat16 on both sides inside torch.autocast("cpu", torch.bfloat16), else float32.

    Raises TypeError if an argument is of the wrong type, if not exactly one of `input_shape` and
    `example_input` is given, or where a layer to measure has no dense twin. Raises ValueError if a
    size is below 1, if `model` has no sparse layer, is on a GPU or on meta, or does not run on the
    input, as where its code reads a layer's `weight`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if (input_shape is None) == (example_input is None):
        got = "neither" if input_shape is None else "both"
        raise TypeError(f"explain: expected input_shape or example_input, got {got}")
    shape = None if input_shape is None else _checked(input_shape)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    layers = _layers(model)
    inputs = Inputs.of_example(example_input) if shape is None else Inputs.of_shape(shape, model)
    threads, peak = torch.get_num_threads(), _C.peak_gflops(torch.get_num_threads())
    recorder = calls.Recorder(model)
    run(model, inputs, recorder.recording)
    rows, cost = [], []
    bf16 = None if measure else costs.dense_bf16_gflops()
    for name, call in calls.distinct(recorder.calls, layers):
        passes = list(calls.rows(name, call, threads, peak))
        rows += passes
        if measure:
            cost.append(costs.measured(name, call))
        else:
            cost.append(costs.by_model(name, call, passes, peak, bf16))
    called = {row.layer for row in rows}
    unused = [name for name in layers.values() if (name or ALONE) not in called]
    return Explanation(rows, unused, _C.isa(), threads, peak, cost, measure)


def _layers(model: nn.Module) -> dict[nn.Module, str]:
    """The sparse layers, on a CPU, with their names."""
    layers: dict[nn.Module, str] = {module: name for name, module in named_sparse_modules(model)}
    if not layers:
        raise ValueError("model: expected at least one sparse layer, got none; see sparsify()")
    for module, name in layers.items():
        assert isinstance(module, SparseModule)
        if module.crow_indices.is_cuda:
            raise ValueError(
                "model: expected a model on the CPU, whose kernels this is about, but layer "
                f"{name!r} is on {module.crow_indices.device}; explain copy.deepcopy(model).cpu()"
            )
        module.pattern()  # raises where there is none, as on meta
    return layers


def _checked(input_shape: Sequence[int]) -> tuple[int, ...]:
    got = repr(input_shape)
    if isinstance(input_shape, Tensor):
        got = f"a tensor, whose sizes are {tuple(input_shape.shape)}"
    wrong = f"input_shape: expected sizes such as (128, 3, 32, 32), got {got}"
    if isinstance(input_shape, str) or not isinstance(input_shape, Sequence):
        raise TypeError(wrong)
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in input_shape):
        raise TypeError(wrong)
    if not input_shape or min(input_shape) < 1:
        raise ValueError(wrong + ": all of them must be at least 1")
    return tuple(input_shape)
