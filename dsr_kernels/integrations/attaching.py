"""What the callbacks have in common: a rewirer that is attached while a training runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from dsr_kernels.rewiring import Rewirer
from dsr_kernels.rewiring.attach import Attachment, OnRewire

# The optimizer, or what finds it in what `make` gets as its optimizer.
After = Optimizer | Callable[[Any], Optimizer]


class Attaching:
    """Base of the callbacks: builds the rewirer and attaches it, and takes it off again."""

    def __init__(
        self, make: Callable[..., Rewirer], on_rewire: OnRewire | None, after: After | None
    ) -> None:
        self.make, self.on_rewire, self.after = make, on_rewire, after
        self.rewirer: Rewirer | None = None  # of the training that runs, or of the last one
        self._handle: Attachment | None = None

    def _attach(
        self, model: Any, optimizer: Any, total: int | None, state: dict[str, Any] | None
    ) -> None:
        """state: the rewirer's, where a training goes on. Callbacks keep it, not the optimizer."""
        self._detach()
        self.rewirer = self.make(model, optimizer, total)
        if state:
            self.rewirer.load_state_dict(state)
        after = self.after
        if after is not None and not isinstance(after, Optimizer):
            after = after(optimizer)
        self._handle = self.rewirer.attach(
            on_rewire=self.on_rewire, after=after, state_in_optimizer=False
        )

    def _detach(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
