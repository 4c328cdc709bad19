"""A callback for Lightning's Trainer: builds a rewirer, attaches it, and keeps its state."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from dsr_kernels.integrations.attaching import After, Attaching
from dsr_kernels.rewiring import Rewirer
from dsr_kernels.rewiring.attach import OnRewire

# (model, optimizer or list of several, optimizer steps of the whole training or None) -> rewirer
Make = Callable[[nn.Module, Any, int | None], Rewirer]


def _package() -> Any:
    """Lightning goes by two names, whose Trainers know only callbacks of their own."""
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        return importlib.import_module("pytorch_lightning")
    return importlib.import_module("lightning.pytorch")


Callback: Any = _package().Callback


class RewirerCallback(Attaching, Callback):
    """Rewires a LightningModule's sparse layers while `trainer.fit` trains it.

        def make(model, optimizer, total):
            return DSR(model, optimizer, prune_fraction=0.1, every=100, total=total)

        trainer = Trainer(callbacks=[RewirerCallback(make)])

    Args:
        make: called when training starts, after all of a checkpoint was loaded, with the
            LightningModule, its optimizer (a list of several), and
            `trainer.estimated_stepping_batches`, None where that is not finite.
        on_rewire: is called with each RewireReport.
        after: the optimizer whose steps count, or a function that gets what `make` gets as its
            optimizer and returns that one. `Rewirer.attach` says when it is needed.

    The rewirer's state is the callback's: checkpoints have it, and `fit(ckpt_path=...)` goes on
    from there, as does another `fit` of the same Trainer. With another Trainer the callback starts
    anew. Raises ValueError at the start of training for a checkpoint without its state.
    """

    def __init__(
        self, make: Make, on_rewire: OnRewire | None = None, after: After | None = None
    ) -> None:
        super().__init__(make, on_rewire, after)
        self._loaded: dict[str, Any] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Comes before a checkpoint is loaded: a training that begins, or goes on from there, has
        nothing to do with the last one.
        """
        if stage == "fit" and not trainer.global_step:
            self.rewirer = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        own = self.state_dict() if trainer.global_step else {}
        state = own if self._loaded is None else self._loaded
        if trainer.global_step and not state:
            raise ValueError(
                f"RewirerCallback: training goes on after step {trainer.global_step}, expected a "
                "checkpoint with this callback's state, got one without; was it saved by a Trainer "
                "with a RewirerCallback?"
            )
        total = trainer.estimated_stepping_batches
        several = trainer.optimizers
        optimizer = several[0] if len(several) == 1 else several
        self._attach(pl_module, optimizer, total if isinstance(total, int) else None, state)
        self._loaded = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """The rewirer's; before there is one, what was loaded, or nothing."""
        if self._loaded is not None:
            return self._loaded
        return {} if self.rewirer is None else self.rewirer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps it until training starts: optimizers are made and loaded later than callbacks."""
        self._loaded = state_dict
