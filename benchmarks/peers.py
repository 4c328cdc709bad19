"""Other sparse implementations, where they are installed: pip install "dsr_kernels[bench]"."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from importlib import metadata
from types import ModuleType

import torch
from torch import nn

from dsr_kernels.bench.problem import Problem
from dsr_kernels.bench.timing import Alternation
from dsr_kernels.ops.reference import to_dense


@functools.cache
def sparseprop() -> ModuleType | ImportError:
    """The modules of SparseProp, or the ImportError that says why there are none."""
    try:
        from sparseprop import modules
    except ImportError as error:
        return error
    return modules


def status() -> str:
    modules = sparseprop()
    if isinstance(modules, ImportError):
        return f"sparseprop is left out: {modules}"
    return f"sparseprop {metadata.version('sparseprop')} is measured beside ours"


def peer_runs(problem: Problem, operation: str) -> dict[str, dict[float, Callable]]:
    """{"sparseprop": {sparsity: run}} for forward + backward; it has no other entry point."""
    modules, layer = sparseprop(), problem.layer
    if isinstance(modules, ImportError) or operation != "module":
        return {}
    if layer.batch % 8 or layer.kernel[0] != layer.kernel[1]:
        print(
            f"sparseprop is left out of {layer}: it needs a batch that is a multiple of 8, and "
            "square kernels"
        )
        return {}
    runs = {s: _fastest(modules, problem, s) for s in problem.sparse}
    right = {s: run for s, run in runs.items() if _agrees(problem, s, run)}
    if len(right) < len(runs):
        warnings.warn(f"sparseprop is left out of {layer}: a wrong input gradient", stacklevel=2)
    return {"sparseprop": right}


def _agrees(problem: Problem, sparsity: float, run: Callable) -> bool:
    ours, theirs = problem.ours("module", sparsity)()[0], run()[0]
    return float((ours - theirs).abs().amax()) < 1e-3 * float(ours.abs().amax())


def _fastest(modules: ModuleType, problem: Problem, sparsity: float) -> Callable[[], object]:
    """The faster of its two ways to vectorize a convolution, which its own tuner would choose."""
    layer, (values, crow, col) = problem.layer, problem.sparse[sparsity]
    weight = to_dense(values, crow, col, layer.weight_shape)
    if layer.linear:
        module = modules.SparseLinear(weight.flatten(1))
        return _step(module, problem.x.flatten(1), problem.grad.flatten(1))
    candidates = {}
    for along_rows in (False, True):
        options = {"padding": layer.padding[0], "stride": layer.stride}
        module = modules.SparseConv2d(weight, **options, vectorizing_over_on=along_rows)
        candidates[along_rows] = _step(module, problem.x, problem.grad)
    quick = Alternation(candidates)
    quick.round()
    return candidates[min(candidates, key=lambda way: quick.times[way][0])]


def _step(module: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> Callable[[], object]:
    def run() -> tuple[torch.Tensor, ...]:
        images = x.detach().requires_grad_()
        return torch.autograd.grad(module(images), (images, module.W_val), grad)

    return run
