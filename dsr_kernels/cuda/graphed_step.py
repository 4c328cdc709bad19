"""GraphedStep: a whole training step as one call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dsr_kernels.cuda.refusals import attachments_of
from dsr_kernels.cuda.replayer import Replayer
from dsr_kernels.rewiring import RewireReport
from dsr_kernels.rewiring.rewirer import Rewirer


class GraphedStep:
    """Makes whole training steps: zero_grad, forward, loss, backward, `optimizer.step()` and, after
    it, `rewirer.step()`. Wherever that gives what eager steps give, they are replayed from a CUDA
    graph, with the same bits.

        step = GraphedStep(model, F.cross_entropy, optimizer, rewirer)
        for images, labels in loader:
            loss = step(images, labels)

    The first step is eager. The second is captured and replayed, and so are those after it, as long
    as nothing changes that a graph has taken as given. After a change there is an eager step, and
    the next one is captured again. Such changes are a rewire, a batch of another shape, numbers in
    the optimizer's groups (a learning rate, weight decay, momentum, betas) or among the attributes
    of modules, tensors that were loaded or replaced, train and eval mode, `requires_grad`,
    autocast. They are looked for before each replay; nothing is asked of the GPU for that. A method
    that grows by gradient has its eager steps where it looks at gradients.

    A learning rate that changes in every step leaves no step to replay. Let it be a tensor on the
    GPU, of an optimizer that reads it there: ``SGD(..., lr=torch.tensor(0.1, device="cuda"),
    fused=True)``. torch's schedulers fill it.

    What runs in Python alone is not replayed: hooks of modules, prints. The dropout of replays
    draws what that of eager steps would. A batch that differs only in its shape, such as a last and
    smaller one, has an eager step, and the graph stays; of two in a row the second gets the graph.

    Gradients are not accumulated over steps. Where there can be no graph, as under
    DistributedDataParallel, with an optimizer that counts on the host, or where something in the
    step waits for the GPU, all steps are eager and a warning says why, once. `why_eager` has it,
    too. On a CPU all steps are eager.

    Args:
        model: on one device.
        loss: loss(model(x), target), a scalar.
        optimizer: a torch.optim.Optimizer; Adam with `fused` or `capturable`.
        rewirer: of this model and optimizer; its `step` is called after each step. One that is
            attached is known by itself.
        autocast: the type of activations, torch.bfloat16 or torch.float16; None: as it is around
            the call.
        scaler: scales the loss, for float16; the optimizer must be a `fused` one.
        before_step: called between backward and the optimizer's step, with gradients unscaled, as
            to clip them. It must not read them on the host.

    Attributes:
        report: what a rewire after the last step did; None: there was none.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        rewirer: Rewirer | None = None,
        *,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        before_step: Callable[[], object] | None = None,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        self.model, self.loss, self.optimizer, self.rewirer = model, loss, optimizer, rewirer
        self.autocast, self.before_step = autocast, before_step
        self.report: RewireReport | None = None
        self._scaler = scaler or torch.amp.GradScaler(enabled=False)
        self._replayer = Replayer(self._work, model, optimizer, self._scaler)

    @property
    def why_eager(self) -> str | None:
        """Why there will be no graph; None: none is known of."""
        return self._replayer.why_eager

    @property
    def is_replaying(self) -> bool:
        """Whether there is a graph now."""
        return self._replayer.is_replaying

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        """Makes a step with a batch; returns its loss, a tensor of its own on the model's device.

        Nothing waits for the loss. The batch is copied to where the graph reads it; a copy from the
        CPU waits for the step before, one from the GPU for nothing.
        """
        self.report, attached = None, attachments_of(self.optimizer)
        if self._scaler.is_enabled():  # which steps are made the hooks see; there is no graph
            attached = []
        with contextlib.ExitStack() as by_hand:
            for one in attached:
                by_hand.enter_context(one.by_hand())
            (loss,) = self._replayer(x, target)
        loss = loss.clone()
        for one in attached:
            self.report = one.count() or self.report
        if self.rewirer is not None and self.rewirer._attachment is None:
            self.report = self.rewirer.step()
        return loss

    def _work(self, x: Tensor, target: Tensor) -> tuple[Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast(x):
            loss = self.loss(self.model(x), target)
        self._scaler.scale(loss).backward()
        if self.before_step is not None:
            self._scaler.unscale_(self.optimizer)
            self.before_step()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return (loss.detach(),)

    def _autocast(self, x: Tensor) -> contextlib.AbstractContextManager[object]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(x.device.type, self.autocast)
