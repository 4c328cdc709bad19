"""A training step: zero_grad, forward, backward, SGD with Nesterov momentum; and where it goes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

KINDS = ("sparse conv", "dense conv", "batch norm", "ReLU, add", "rest")
CONVOLUTIONS = KINDS[:2]
PROFILED = 3
RELU = ("relu", "relu_", "clamp_min", "clamp_min_", "threshold_backward", "ReluBackward0")
RELU_AND_ADD = (*RELU, "add", "add_", "AddBackward0")


class Training:
    """A model with its optimizer and a batch."""

    def __init__(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        self.model, self.images, self.labels, self.autocast = model, images, labels, autocast
        self.optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True)

    def differentiate(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()

    def step(self) -> None:
        self.differentiate()
        self.optimizer.step()

    def weight_bytes(self) -> int:
        """Bytes of parameters, and of the indices of sparse layers."""
        return sum(tensor.nbytes for tensor in self._weights())

    def _weights(self) -> list[torch.Tensor]:
        indices = [b for name, b in self.model.named_buffers() if name.endswith("_indices")]
        return [*self.model.parameters(), *indices]

    def held_bytes(self) -> int:
        """Bytes of parameters, gradients, the indices of sparse layers, and optimizer state."""
        held = self._weights()
        held += [p.grad for p in self.model.parameters() if p.grad is not None]
        states = self.optimizer.state.values()
        held += [v for state in states for v in state.values() if torch.is_tensor(v)]
        return sum(tensor.nbytes for tensor in held)

    def milliseconds_by_kind(self, step_ms: float) -> dict[str, float]:
        """A step's `step_ms`, shared out like the self CPU times of PROFILED steps."""
        self._profiled_step()  # the first one of a process pays for the profiler's start
        shares = sum((self._profiled_step() for _ in range(PROFILED)), Counter())
        total = sum(shares.values())
        return {kind: round(step_ms * shares[kind] / total, 2) for kind in KINDS}

    def _profiled_step(self) -> Counter[str]:
        """Microseconds by kind."""
        shares: Counter[str] = Counter()
        for part, run in (("", self.differentiate), ("rest", self.optimizer.step)):
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                run()
            for event in profiler.key_averages():
                shares[part or kind_of(event.key)] += event.self_cpu_time_total
        return shares


def kind_of(op: str) -> str:
    """The kind of an op, by the name that the profiler gives it.

    Batch norm, ReLU and additions within a fused convolution count as sparse convolution.
    """
    name = op.rpartition(": ")[2]  # of "autograd::engine::evaluate_function: SparseConvBackward"
    if name.startswith(("dsr_kernels::channel", "Channel")):
        return "batch norm"  # what fuse() leaves of it: channel_moments, channel_affine
    if name.startswith(("SparseConv", "dsr_kernels::")):
        return "sparse conv"
    if "conv" in name.lower():
        return "dense conv"
    if "batch_norm" in name or "BatchNorm" in name:
        return "batch norm"
    if name.removeprefix("aten::") in RELU_AND_ADD:
        return "ReLU, add"
    return "rest"


def share_outside(kinds: dict[str, float]) -> float:
    """The share of a step that is spent outside convolutions."""
    inside = sum(kinds[kind] for kind in CONVOLUTIONS)
    return round(1 - inside / sum(kinds.values()), 4)
