"""A small model with every kind of layer, trained by every optimizer, and what must survive."""

import copy

import torch
from torch import nn

from dsr_kernels.nn import SparseConv2d, SparseLinear, SparseModule
from dsr_kernels.rewiring import DSR

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
}


STATE_KEYS = {
    "sgd": set(),
    "momentum": {"momentum_buffer"},
    "nesterov": {"momentum_buffer"},
    "adam": {"exp_avg", "exp_avg_sq"},
    "amsgrad": {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    "adamw": {"exp_avg", "exp_avg_sq"},
    "adamw_foreach": {"exp_avg", "exp_avg_sq"},
}


def make_model(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    return nn.Sequential(
        SparseConv2d(3, 8, 3, sparsity=0.5, generator=generator),
        nn.ReLU(),
        nn.Flatten(),
        SparseLinear(8 * 16, 10, sparsity=0.8, generator=generator),
        nn.Linear(10, 5),
    )


def train(model, optimizer, rewirer, iterations, start=0, ema=None):
    reports = []
    for i in range(start, start + iterations):
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(i))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        reports.append(rewirer.step())
        if ema is not None:
            ema.update_parameters(model)
    return reports


def entries(module: SparseModule, *arrays: torch.Tensor) -> dict[int, tuple[float, ...]]:
    positions = module.topology.linear_positions().tolist()
    return dict(
        zip(positions, zip(*(a.flatten().tolist() for a in arrays), strict=True), strict=True)
    )


def state_arrays(optimizer, module: SparseModule) -> list[torch.Tensor]:
    state = optimizer.state[module.weight_values]
    arrays = [module.weight_values.detach()]
    return arrays + [v for k, v in sorted(state.items()) if torch.is_tensor(v) and v.dim()]


def snapshot(model, optimizer, rewirer):
    tensors = {f"{k} grad": p.grad for k, p in model.named_parameters() if p.grad is not None}
    tensors |= {**model.state_dict(), **dict(model.named_parameters())}
    state = {
        f"{i} {key}": value
        for i, p in enumerate(model.parameters())
        for key, value in optimizer.state.get(p, {}).items()
    }
    return copy.deepcopy((tensors, state, rewirer.state_dict()))


def assert_same(a, b):
    assert a[2] == b[2]
    for x, y in zip(a[:2], b[:2], strict=True):
        assert x.keys() == y.keys()
        for key in x:
            torch.testing.assert_close(x[key], y[key], rtol=0, atol=0, equal_nan=True)


def trained():
    model = make_model()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    rewirer = DSR(model, optimizer, prune_fraction=0.3, threshold="exact", every=1)
    train(model, optimizer, rewirer, 3)
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    return model, optimizer, rewirer
