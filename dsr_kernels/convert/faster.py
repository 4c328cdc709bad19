"""where='faster': which layers would be slower sparse than dense, by the cost model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels import probe
from dsr_kernels.backends.native import _C
from dsr_kernels.convert.choice import Choice
from dsr_kernels.explaining import calls, costs
from dsr_kernels.nn.twins import twin_class


def slower(
    model: nn.Module,
    choice: Choice,
    counts: Sequence[tuple[int, int]],
    inputs: probe.Inputs,
) -> list[nn.Module]:
    """The layers of `choice` that lose, over all their calls, with (non-zeros, block size) each.

    A sparse twin with a random pattern stands for each, one at a time. A layer that the model does
    not call stays in. Raises ValueError for a model that is not on a CPU, for the cost model is of
    the CPU's kernels.
    """
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    if where.type != "cpu":
        raise ValueError(
            f"where: 'faster' asks the cost model of the CPU's kernels, and the model is on {where}"
        )
    given = _inputs_of(model, choice, inputs)
    threads, peak = torch.get_num_threads(), _C.peak_gflops(torch.get_num_threads())
    bf16 = costs.dense_bf16_gflops() if costs.compared_in() == "bf16" else None
    lost: list[nn.Module] = []
    for (name, layer), (nnz, size) in zip(choice.layers.items(), counts, strict=True):
        draw = torch.Generator().manual_seed(0)
        options: dict[str, Any] = {"nnz": nnz, "block_size": size, "generator": draw}
        twin = twin_class(layer).from_dense(layer, keep="random", **options)
        ours = dense = 0.0
        for x in given.get(layer, ()):
            recorder = calls.Recorder(twin)
            shown = probe.Inputs((x,), {}, name, str(tuple(x.shape)))
            probe.run(twin, shown, recorder.recording)
            for call in recorder.calls:
                rows = list(calls.rows(name, call, threads, peak))
                pair = costs.by_model(name, call, rows, peak, bf16).pair
                ours, dense = ours + pair[0], dense + pair[1]
        if ours > dense:
            lost.append(layer)
    return lost


def _inputs_of(
    model: nn.Module, choice: Choice, inputs: probe.Inputs
) -> dict[nn.Module, list[Tensor]]:
    """What each layer is called with, on meta, once for each shape."""
    given: dict[nn.Module, dict[torch.Size, Tensor]] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = calls.given_to(args, named)
        if x is not None:
            given.setdefault(layer, {})[x.shape] = calls.meta(x)

    @contextlib.contextmanager
    def noting() -> Iterator[None]:
        layers = choice.layers.values()
        handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    probe.run(model, inputs, noting)
    return {layer: list(found.values()) for layer, found in given.items()}
