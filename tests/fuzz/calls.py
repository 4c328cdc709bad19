"""Random calls of layers, most of them right, many hostile: each gives an answer or raises.

    PYTHONPATH=.:tests python tests/fuzz/calls.py --seconds 120

ends with a line that counts both, or with the seed of the first case that went wrong: a right call
whose numbers differ from a dense one's, a hostile call that raises something else than a refusal.
A crash ends the process; the last line that was written, to --log, names its seed.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dsr_kernels import SparseConv2d
from dsr_kernels.nn import functional

# What a refusal raises. MemoryError is torch's RuntimeError, too.
REFUSALS = (ValueError, TypeError, RuntimeError, NotImplementedError, MemoryError, OverflowError)
HUGE = (2**31 - 1, 2**31, 2**32 + 1, 2**40, 2**62, 2**63 - 1, 2**63, -1, -(2**31), -(2**63), 0)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Arguments(dict):
    """Of functional.sparse_conv2d, by name."""

    def call(self) -> Tensor:
        return functional.sparse_conv2d(**self)


def right(rng: random.Random) -> tuple[SparseConv2d, Arguments]:
    """A layer, and the arguments of a call that fits it."""
    groups = rng.choice((1, 1, 1, 2, 3))
    block = rng.choice((1, 1, 1, 4))
    inputs = groups * rng.randint(1, 5)
    outputs = groups * block * rng.randint(1, 4)
    kernel = rng.randint(1, 4), rng.randint(1, 4)
    stride, dilation = (tuple(rng.randint(1, 3) for _ in range(2)) for _ in range(2))
    padding = tuple(rng.choice((0, 0, 1, 2, 5)) for _ in range(4))
    size = [
        max(1, dilation[i] * (kernel[i] - 1) + 1 - sum(padding[2 * i : 2 * i + 2]))
        + rng.randint(0, 6)
        for i in range(2)
    ]
    wide = rng.random() < 0.3
    torch.manual_seed(rng.getrandbits(31))
    layer = SparseConv2d(
        inputs,
        outputs,
        kernel,
        groups=groups,
        bias=rng.random() < 0.5,
        sparsity=rng.choice((0.0, 0.5, 0.9)),
        block_size=block,
        dtype=torch.float64 if wide else torch.float32,
    )
    x = torch.randn(rng.randint(0, 5), inputs, *size).to(
        torch.float64 if wide else rng.choice(DTYPES[:1] * 3 + DTYPES[2:])
    )
    if rng.random() < 0.3:
        x = x.to(memory_format=torch.channels_last)
    arguments = Arguments(
        x=x,
        values=layer.weight_values,
        bias=layer.bias,
        crow_indices=layer.crow_indices,
        col_indices=layer.col_indices,
        weight_shape=layer.weight_shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    return layer, arguments


def check(layer: SparseConv2d, a: Arguments, rng: random.Random) -> None:
    """A right call, forward and backward, against a dense one in float64."""
    x = a["x"].detach().requires_grad_(rng.random() < 0.8)
    y = Arguments(a, x=x).call()
    top, bottom, left, side = a["padding"]
    twin = x.detach().double().requires_grad_()
    weight = layer.to_dense().detach().double().requires_grad_()
    bias = None if a["bias"] is None else a["bias"].detach().double()
    padded = F.pad(twin, (left, side, top, bottom))
    dense = F.conv2d(padded, weight, bias, a["stride"], 0, a["dilation"], a["groups"])
    grad = torch.randn_like(y)
    wanted = [layer.weight_values, *([x] if x.requires_grad else [])]
    found = torch.autograd.grad(y, wanted, grad)
    gweight, gx = torch.autograd.grad(dense, [weight, twin], grad.double())
    close = 0.05 if x.dtype.itemsize == 2 else 1e-3
    pairs = [(y, dense), *([(found[1], gx)] if x.requires_grad else [])]
    block = layer.block_size
    positions = layer.topology.linear_positions().view(-1)
    if block == 1:
        pairs.append((found[0].flatten(), gweight.flatten()[positions]))
    for ours, exact in pairs:
        assert ours.shape == exact.shape
        scale = exact.abs().max().item() if exact.numel() else 1.0
        off = (ours.double() - exact).abs().max().item() if exact.numel() else 0.0
        assert off <= close * max(1.0, scale), off


def freed(tensor: Tensor, size: int) -> Tensor:
    tensor = tensor.detach().clone()
    tensor.untyped_storage().resize_(size)
    return tensor


def hostile(a: Arguments, rng: random.Random) -> Arguments:
    """The same with one argument, or several, as they must not be."""
    given, a = a, Arguments(a)

    def number(name: str) -> None:
        numbers = list(a[name])
        numbers[rng.randrange(len(numbers))] = rng.choice(HUGE)
        a[name] = tuple(numbers)

    def other(name: str) -> None:
        tensor: Tensor = a[name]
        large = 2**15 if tensor.dtype == torch.float16 else 2**30
        changes: list[Callable[[], object]] = [
            lambda: tensor.detach().to(rng.choice((torch.int16, torch.int64, torch.float16))),
            lambda: tensor.detach()[: tensor.shape[0] // 2],
            lambda: tensor.detach().unsqueeze(0),
            lambda: tensor.detach().expand(2, *tensor.shape),
            lambda: torch.cat((tensor.detach(), tensor.detach())),
            lambda: freed(tensor, 0),
            lambda: freed(tensor, 4),
            lambda: tensor.detach().to("meta"),
            lambda: tensor.detach().clone().fill_(rng.choice((-1, 7, 2**15, large))),
            lambda: tensor.detach().flip(0),
            lambda: torch.empty(0, dtype=tensor.dtype),
        ]
        if name == "x":
            changes.append(lambda: tensor.detach().to_sparse())
        a[name] = rng.choice(changes)()

    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.4:
            number(rng.choice(("weight_shape", "stride", "padding", "dilation")))
        elif kind < 0.5:
            a["groups"] = rng.choice(HUGE)
        else:
            name = rng.choice(("x", "values", "crow_indices", "col_indices", "bias"))
            if isinstance(a[name], Tensor) and a[name] is given[name]:
                other(name)
    return a


def one(seed: int) -> str:
    """What came of a case: 'right', 'answered' or 'refused'."""
    rng = random.Random(seed)
    layer, arguments = right(rng)
    if rng.random() < 0.4:
        check(layer, arguments, rng)
        if rng.random() < 0.3:  # prepared, by now
            check(layer, arguments, rng)
        return "right"
    if rng.random() < 0.5:
        arguments.call()  # prepared, before something is wrong
    wrong = hostile(arguments, rng)
    try:
        y = wrong.call()
        if y.requires_grad:
            y.float().sum().backward()
    except REFUSALS:
        return "refused"
    return "answered"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--seconds", type=float, default=120)
    add("--seed", type=int, help="this case alone")
    add("--first", type=int, default=int(time.time()), help="seed of the first case")
    add("--log", type=Path, help="where to note each seed before its case")
    options = parser.parse_args()
    if options.seed is not None:
        print(one(options.seed))
        return
    torch.set_num_threads(1)  # cases are small
    counts: Counter[str] = Counter()
    end, seed = time.monotonic() + options.seconds, options.first
    while time.monotonic() < end:
        if options.log is not None:
            options.log.write_text(f"seed {seed}\n")
        try:
            counts[one(seed)] += 1
        except BaseException:
            print(f"seed {seed}", flush=True)
            raise
        seed += 1
    print(f"{sum(counts.values())} cases from seed {options.first}: {dict(counts)}")


if __name__ == "__main__":
    main()
