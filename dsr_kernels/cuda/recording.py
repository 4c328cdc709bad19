"""One CUDA graph of a step: its capture, what it reads and writes, and its replays."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsr_kernels.backends.patterns import patterns
from dsr_kernels.cuda.host_state import HostState
from dsr_kernels.cuda.look import Look, look_of, look_of_batch
from dsr_kernels.nn import SparseModule

Work = Callable[..., tuple[Tensor, ...]]  # of a batch: a whole step, and what it found


@dataclass
class Step:
    """A step and all that it changes."""

    work: Work
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device

    def look(self) -> Look:
        return look_of(self.model, self.optimizer, self.scaler)

    def run(self, batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The step itself. What autocast keeps of weights is of no other step: within a graph such
        copies would be as old as the graph.
        """
        torch.clear_autocast_cache()
        try:
            return self.work(*batch)
        finally:
            torch.clear_autocast_cache()

    def parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def forget_scaling(self) -> None:
        """Forgets what a GradScaler has begun in a step that was not made."""
        for name in ("grad_scale", "found_inf"):
            if hasattr(self.optimizer, name):
                delattr(self.optimizer, name)
        if self.scaler.is_enabled():
            self.scaler._per_optimizer_states.clear()


class CannotCapture(Exception):
    """Says why there is no graph of a step; nothing has changed."""


class Recording:
    """A graph of a step for batches of one look."""

    def __init__(self, step: Step, batch: Sequence[Tensor], stream: torch.cuda.Stream) -> None:
        """Captures the step. That computes nothing: `replay` makes it. Raises CannotCapture."""
        self.look, self.look_of_batch = step.look(), look_of_batch(batch)
        self.inputs = [torch.empty_like(t, device=step.device).copy_(t) for t in batch]
        self.graph, self.outputs = _capture(step, self.inputs, stream)
        # Held, so that nobody else is given their memory: the graph has their addresses.
        self._parameters = step.parameters()
        self._gradients = [p.grad for p in self._parameters]
        sparse = [m for m in step.model.modules() if isinstance(m, SparseModule)]
        self._patterns = [module.pattern() for module in sparse]
        self._plans = patterns.plans()

    @torch.no_grad()
    def replay(self, batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Makes the step with this batch. The next one overwrites what it returns."""
        for own, given in zip(self.inputs, batch, strict=True):
            own.copy_(given)
        self.graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if parameter.grad is not gradient:  # an eager step has others
                parameter.grad = gradient
        return self.outputs


def _capture(
    step: Step, inputs: Sequence[Tensor], stream: torch.cuda.Stream
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """A graph, and what it will write. Raises CannotCapture, with all as it was before."""
    host, look = HostState(step.model, step.optimizer, step.device), step.look()
    plans = patterns.plans()
    step.optimizer.zero_grad(set_to_none=True)
    graph, outputs, failed = _record(step, inputs, stream)
    if failed is None and (key := host.changed()) is not None:
        failed = f"a step counts {key!r} on the host, or puts another tensor in its place"
    if failed is None and step.look() != look:
        failed = "a step changes the model or the optimizer on the host"
    known = {id(plan) for plan in plans}
    if any(id(plan) not in known for plan in patterns.plans()):
        failed = failed or "a sparse layer was used as in no step before"
        patterns.clear()  # plans that were made within a capture hold nothing
    if failed is None:
        return graph, outputs
    host.put_back()
    step.optimizer.zero_grad(set_to_none=True)
    step.forget_scaling()
    raise CannotCapture(failed)


def _record(
    step: Step, inputs: Sequence[Tensor], stream: torch.cuda.Stream
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], str | None]:
    """(graph, outputs, why it failed)."""
    graph, outputs = torch.cuda.CUDAGraph(), ()
    failed: str | None = None
    current = torch.cuda.current_stream(step.device)
    try:
        # Other threads, such as those that read data, may do what a capture could not take.
        recorded = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
        with _no_collection(), _capturable(step.optimizer), recorded:
            try:
                outputs = step.run(inputs)
            except Exception as error:
                failed = _in_a_line(error)
                raise
    except Exception as error:  # the end of a capture raises, too, where something in it has
        failed = failed or _in_a_line(error)
    finally:
        torch.cuda.set_stream(current)  # torch leaves its own where a capture cannot end
    return graph, outputs, failed


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Python's collector might free what cannot be freed within a capture, such as a graph."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Says that fused Adam can be captured, as it can: its counts are on the device."""
    groups = [g for g in optimizer.param_groups if g.get("fused") and g.get("capturable") is False]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


def _in_a_line(error: Exception) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}"
