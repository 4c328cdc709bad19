"""A process in which threads use a layer while another one changes it: `python FILE CHANGE`.

Each pass must give what one of the layer's weights gives, bit for bit, or say that its graph is of
an older one. Prints how many passes gave which weight's result.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dsr_kernels.backends.fused import Prologue
from dsr_kernels.nn import SparseConv1d, SparseConv2d, SparseLinear
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.rewiring import SET

CHANGES = 60
STALE = "between forward and backward"

Pass = Callable[[nn.Module, Tensor], tuple[Tensor, ...]]


def layers(nnz: int, seed: int) -> list[tuple[SparseModule, Tensor]]:
    """(a layer, its input) of each kind; the last one has taps that are dead."""
    torch.manual_seed(seed)
    return [
        (SparseLinear(64, 48, nnz=nnz), torch.ones(5, 64)),
        (SparseConv2d(16, 32, 3, padding=1, nnz=nnz), torch.ones(2, 16, 8, 8)),
        (SparseConv1d(16, 32, 3, padding=1, nnz=nnz), torch.ones(2, 16, 9)),
        (SparseConv2d(16, 32, 3, padding=8, dilation=8, nnz=nnz), torch.ones(2, 16, 8, 8)),
    ]


def serve(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (layer(x),)


def recorded(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return (layer(x).detach(),)


def backward(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    y = layer(x)
    return y.detach(), *torch.autograd.grad(y, (x, layer.weight_values), torch.ones_like(y))


def fused(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    y = layer.fused(x, Prologue(None, True), None, False).y
    return y.detach(), *torch.autograd.grad(y, (x, layer.weight_values), torch.ones_like(y))


def folded(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        scale = torch.full_like(layer.bias, 0.5)
        return (layer.folded(x, Prologue(None, False), scale, scale, None, True),)


def save(layer: nn.Module, _: Tensor) -> tuple[Tensor, ...]:
    state = layer.state_dict()
    return state["weight_values"], state["crow_indices"], state["col_indices"]


def passes(layer: nn.Module) -> list[Pass]:
    return [serve, recorded, backward, save, *([fused, folded] * (type(layer) is SparseConv2d))]


def loads(layer: SparseModule, others: list[SparseModule], assign: bool) -> Iterator[None]:
    for i in range(CHANGES):
        state = others[i % 2].state_dict()
        if assign:
            state = {key: tensor.clone() for key, tensor in state.items()}
        layer.load_state_dict(state, assign=assign)
        yield


def replaces(layer: SparseModule, others: list[SparseModule]) -> Iterator[None]:
    for i in range(CHANGES):
        other = others[i % 2]
        pattern = other.crow_indices.clone(), other.col_indices.clone()
        layer.replace_topology(*pattern, other.weight_values.detach().clone())
        yield


def use(layer: nn.Module, x: Tensor, run: Pass, until: threading.Event, found: list) -> None:
    try:
        while not until.is_set():
            try:
                found.append(run(layer, x))
            except RuntimeError as error:
                if STALE not in str(error):
                    raise
    except BaseException as error:
        found.append(error)


def beside(layer: SparseModule, x: Tensor, run: Pass, changes: Iterator[None]) -> list:
    """What two threads get, that pass `x` through the layer again and again."""
    until, found = threading.Event(), [[], []]
    threads = [threading.Thread(target=use, args=(layer, x, run, until, f)) for f in found]
    for thread in threads:
        thread.start()
    try:
        for _ in changes:
            pass
    finally:
        until.set()
        for thread in threads:
            thread.join()
    return found[0] + found[1]


def count(results: list, expected: list[tuple[Tensor, ...]]) -> Counter[int]:
    counted: Counter[int] = Counter()
    for result in results:
        if isinstance(result, BaseException):
            raise result
        same = [all(map(torch.equal, result, wanted)) for wanted in expected]
        assert any(same), f"a result of none of the {len(expected)} weights"
        counted[same.index(True)] += 1
    return counted


def check(change: str) -> None:
    sizes = (400, 400) if change in ("same_nnz", "replace_same") else (400, 900)
    pairs = zip(*(layers(nnz, seed) for seed, nnz in enumerate(sizes)), strict=True)
    for (one, x), (other, _) in pairs:
        others: list[SparseModule] = [one, other]
        with torch.no_grad():
            other.bias.copy_(one.bias)
        # After an assignment the layer's parameter is another than the graph's.
        for run in passes(one):
            if change == "assign" and run in (backward, fused):
                continue
            layer = copy.deepcopy(one)
            expected = [run(each, x) for each in others]
            if change.startswith("replace"):
                changes = replaces(layer, others)
            else:
                changes = loads(layer, others, assign=change == "assign")
            name = f"{type(layer).__name__} {run.__name__}"
            print(name, dict(count(beside(layer, x, run, changes), expected)), flush=True)


def check_rewires() -> None:
    for layer, x in layers(400, 0):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        rewirer = SET(layer, optimizer, every=1)
        weights = [copy.deepcopy(layer)]

        def rewires(rewirer=rewirer, weights=weights, layer=layer) -> Iterator[None]:
            for _ in range(CHANGES // 4):
                rewirer.rewire()
                weights.append(copy.deepcopy(layer))
                yield

        for run in passes(layer):
            before = len(weights) - 1
            results = beside(layer, x, run, rewires())
            expected = [run(each, x) for each in weights[before:]]
            print(type(layer).__name__, run.__name__, len(count(results, expected)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-5)
    check_rewires() if sys.argv[1] == "rewire" else check(sys.argv[1])
