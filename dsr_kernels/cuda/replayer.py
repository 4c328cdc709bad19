"""Decides, before each step, whether it is made eagerly, captured or replayed.

A step is made eagerly where anything has changed since the last one: patterns, tensors, learning
rates, the batch's shape. Where the next step finds all as the eager one has left it, it is captured
and then replayed, as long as nothing changes. So a last, smaller batch costs no graph, and neither
does a schedule that changes the learning rate in every step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dsr_kernels.cuda.look import Look, look_of_batch
from dsr_kernels.cuda.recording import CannotCapture, Recording, Step, Work
from dsr_kernels.cuda.refusals import is_watched, why_eager

RESTLESS = 100  # eager steps in a row, after which a line says that there is no graph
GPU = "cuda"  # the kind of device that has graphs


class Replayer:
    """Makes steps of training, from a CUDA graph wherever that gives what an eager step would.

    Args:
        work: makes a whole step for a batch, from zero_grad to the optimizer's, and returns tensors
            of no gradient. It must not read them on the host.
        model, optimizer: all that the step changes.
        scaler: of the step's loss; it may be a disabled one.
        say: is given one line where there will be no graph, and why.
    """

    def __init__(
        self,
        work: Work,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        say: Callable[[str], object] | None = None,
    ) -> None:
        device = next(model.parameters()).device
        self._step = Step(work, model, optimizer, scaler, device)
        self._say = say or (lambda line: warnings.warn(line, stacklevel=4))
        self.why_eager: str | None = None  # for always
        self._recording: Recording | None = None
        # What an eager step has left: the next one like it may be captured.
        self._warm: tuple[Look, Look] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._eager_steps = 0  # in a row
        self._was_told = False  # that they are many

    @property
    def is_replaying(self) -> bool:
        """Whether there is a graph now."""
        return self._recording is not None

    def __call__(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """Makes a step. What it returns is overwritten by the next one."""
        device = next(self._step.model.parameters()).device
        if device != self._step.device:  # the model was moved
            self._drop()
            self._step.device, self._stream = device, None
        if device.type != GPU or self.why_eager is not None:
            return self._step.run([t.to(device) for t in batch])
        if is_watched(self._step):
            self._drop()  # a rewire follows
            return self._eagerly(batch)
        if any(t.requires_grad for t in batch):
            return self._eagerly(batch)
        return self._replay(batch) or self._eagerly(batch)

    def _replay(self, batch: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """The step by a graph; None: that cannot be now, and nothing was done."""
        shape, look = look_of_batch(batch), self._step.look()
        if self._recording is not None and self._recording.look != look:
            self._drop()
        if not self._has_graph_for(shape) and self._warm == (shape, look):
            self._record(batch)
        if self._recording is None or not self._has_graph_for(shape):
            return None
        self._eager_steps, self._warm = 0, None
        return self._recording.replay(batch)

    def _has_graph_for(self, shape: Look) -> bool:
        return self._recording is not None and self._recording.look_of_batch == shape

    def _record(self, batch: Sequence[Tensor]) -> None:
        """Captures a graph for such batches, in the place of the one there is. Where there can be
        none, there will never be one.
        """
        self._drop()
        reason = why_eager(self._step)
        if reason is None:
            try:
                self._recording = Recording(self._step, batch, self._side_stream())
                return
            except CannotCapture as error:
                reason = str(error)
        self.why_eager = reason
        self._say(f"no CUDA graph, steps are eager: {reason}")

    def _eagerly(self, batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The step itself, on the stream that a capture will have: autograd does what it does for a
        parameter on the stream where it has met it first.
        """
        if self.why_eager is not None:  # since a moment ago
            return self._step.run([t.to(self._step.device) for t in batch])
        # Torch warns where a `capturable` optimizer steps without a graph, once.
        self._step.optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]
        batch = [t.to(self._step.device) for t in batch]
        side, current = self._side_stream(), torch.cuda.current_stream(self._step.device)
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                outputs = self._step.run(batch)
        finally:
            current.wait_stream(side)
        self._warm = look_of_batch(batch), self._step.look()
        self._count_eager()
        return outputs

    def _count_eager(self) -> None:
        self._eager_steps += 1
        if self._eager_steps == RESTLESS and not self._was_told:
            self._was_told = True
            self._say(
                f"no CUDA graph: something has changed in each of {RESTLESS} steps, such as the "
                "learning rate; give a fused optimizer its rate as a tensor on the GPU "
                "(lr=torch.tensor(0.1, device='cuda'), fused=True), which schedulers fill"
            )

    def _side_stream(self) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._step.device)
        return self._stream

    def _drop(self) -> None:
        """Lets the graph go, and with it all its memory, before another one takes as much.

        Each graph has a pool of its own. A pool that was handed on would have to outlive the graphs
        (torch refuses one whose graphs are gone), and then its memory would be there beside that of
        the eager step after a rewire.
        """
        if self._recording is None:
            return
        torch.cuda.synchronize(self._step.device)
        self._recording = None
        self._step.optimizer.zero_grad(set_to_none=True)  # gradients lie in its memory
