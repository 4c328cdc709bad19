"""Times whole training steps, sparse and dense in turn. Run with `make bench`.

A step is zero_grad, forward, backward, and SGD with Nesterov momentum. Also recorded: the bytes of
weights, gradients and optimizer state, and where the time of a step goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from dsr_kernels.bench.problem import DENSE, LAST
from dsr_kernels.bench.timing import Alternation, best_dense
from dsr_kernels.models import resnet50, wrn_28

# model, batch, image, classes, sparsities, rounds
CASES = {
    "WRN-28-2": (partial(wrn_28, 2), 128, 32, 10, (0.8, 0.9, 0.95), 9),
    "ResNet-50": (resnet50, 16, 224, 1000, (0.9,), 5),
}
KINDS = ("sparse conv", "dense conv", "batch norm", "ReLU, add", "rest")


class Training:
    """A model with its optimizer and a batch."""

    def __init__(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True)

    def differentiate(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(self.images), self.labels).backward()

    def step(self) -> None:
        self.differentiate()
        self.optimizer.step()

    def held_bytes(self) -> int:
        """Bytes of parameters, gradients, the indices of sparse layers, and optimizer state."""
        held = [*self.model.parameters()]
        held += [p.grad for p in held if p.grad is not None]
        held += [b for name, b in self.model.named_buffers() if name.endswith("_indices")]
        states = self.optimizer.state.values()
        held += [v for state in states for v in state.values() if torch.is_tensor(v)]
        return sum(tensor.nbytes for tensor in held)

    def milliseconds_by_kind(self, step_ms: float) -> dict[str, float]:
        """A step's `step_ms`, shared out like the self CPU times of one profiled step."""
        shares: Counter[str] = Counter()
        for part, run in (("", self.differentiate), ("rest", self.optimizer.step)):
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                run()
            for event in profiler.key_averages():
                shares[part or kind_of(event.key)] += event.self_cpu_time_total
        total = sum(shares.values())
        return {kind: round(step_ms * shares[kind] / total, 2) for kind in KINDS}


def kind_of(op: str) -> str:
    """The kind of an op, by the name that the profiler gives it."""
    name = op.rpartition(": ")[2]  # of "autograd::engine::evaluate_function: SparseConvBackward"
    if name.startswith(("SparseConv", "dsr_kernels::")):
        return "sparse conv"
    if "conv" in name.lower():
        return "dense conv"
    if "batch_norm" in name or "BatchNorm" in name:
        return "batch norm"
    if name.removeprefix("aten::") in RELU_AND_ADD:
        return "ReLU, add"
    return "rest"


RELU = ("relu", "relu_", "clamp_min", "clamp_min_", "threshold_backward", "ReluBackward0")
RELU_AND_ADD = (*RELU, "add", "add_", "AddBackward0")


def trainings(name: str) -> tuple[dict, dict]:
    """(dense twins by memory format, sparse models by sparsity)."""
    make, batch, size, classes, sparsities, _ = CASES[name]
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, classes, (batch,))
    dense = {DENSE[0]: Training(make(sparse=False), images, labels)}
    dense[DENSE[1]] = Training(make(sparse=False).to(**LAST), images.to(**LAST), labels)
    return dense, {s: Training(make(s), images, labels) for s in sparsities}


@pytest.mark.parametrize("name", CASES)
def test_training_step(benchmark, name: str, rounds) -> None:
    dense, sparse = trainings(name)
    steps: dict[object, Callable] = {key: t.step for key, t in (dense | sparse).items()}
    alternation = Alternation(steps)
    benchmark.pedantic(alternation.round, rounds=rounds(CASES[name][-1]))
    ms = alternation.milliseconds()
    fastest = min(dense, key=lambda key: ms[key]["min"])
    dense_kinds = dense[fastest].milliseconds_by_kind(ms[fastest]["min"])
    records = []
    for sparsity, training in sparse.items():
        times = {key: ms[key] for key in dense} | {"ours": ms[sparsity]}
        kinds = training.milliseconds_by_kind(times["ours"]["min"])
        held = {"ours": training.held_bytes(), "dense": dense[fastest].held_bytes()}
        record = {
            "model": name,
            "batch": CASES[name][1],
            "sparsity": sparsity,
            "ms": times,
            "speed-up": round(best_dense(times) / times["ours"]["min"], 3),
            "ms by kind": {"ours": kinds, "dense": dense_kinds},
            "held bytes": held,
        }
        records.append(record)
        assert held["ours"] < held["dense"]
        assert all(torch.isfinite(p).all() for p in training.model.parameters())
    benchmark.extra_info["records"] = records


@pytest.mark.parametrize("name", CASES)
def test_inference_of_one_image(benchmark, name: str, rounds) -> None:
    make, _, size, _, _, _ = CASES[name]
    image = torch.randn(1, 3, size, size)
    dense, last = make(sparse=False).eval(), make(sparse=False).to(**LAST).eval()
    sparse = make(0.9).eval()

    def run(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model(image)

    runs = {
        DENSE[0]: partial(run, dense, image),
        DENSE[1]: partial(run, last, image.to(**LAST)),
        "ours": partial(run, sparse, image),
    }
    alternation = Alternation(runs)
    benchmark.pedantic(alternation.round, rounds=rounds(30))
    ms = alternation.milliseconds()
    assert torch.isfinite(run(sparse, image)).all()
    speed_up = round(best_dense(ms) / ms["ours"]["min"], 3)
    benchmark.extra_info["records"] = [
        {"model": name, "batch": 1, "sparsity": 0.9, "ms": ms, "speed-up": speed_up}
    ]
