"""A callback for transformers' Trainer: builds a rewirer, attaches it, and keeps its state."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.trainer_callback import ExportableState, TrainerCallback

from dsr_kernels.integrations.attaching import After, Attaching
from dsr_kernels.rewiring import Rewirer
from dsr_kernels.rewiring.attach import OnRewire

# (model, optimizer, optimizer steps of the whole training) -> rewirer
Make = Callable[[nn.Module, Any, int], Rewirer]


class RewirerCallback(Attaching, TrainerCallback, ExportableState):
    """Rewires the sparse layers of a Trainer's model, whichever optimizer it makes.

        def make(model, optimizer, total):
            return DSR(model, optimizer, prune_fraction=0.1, every=100, total=total)

        trainer = Trainer(model, args, train_dataset=..., callbacks=[RewirerCallback(make)])

    Args:
        make: called when training starts, after all of a checkpoint was loaded, with the model, its
            optimizer, and the number of optimizer steps (`state.max_steps`).
        on_rewire: is called with each RewireReport.
        after: the optimizer whose steps count, or a function that gets what `make` gets as its
            optimizer and returns that one. `Rewirer.attach` says when it is needed.

    The rewirer's state lies in each checkpoint's trainer_state.json, and
    `train(resume_from_checkpoint=...)` goes on from there. Raises ValueError at the start of
    training for a checkpoint without it.
    """

    def __init__(
        self,
        make: Make | None = None,
        on_rewire: OnRewire | None = None,
        after: After | None = None,
    ) -> None:
        if make is None:
            raise ValueError(
                "make: expected a function that builds the rewirer, got None; does "
                "TrainingArguments(restore_callback_states_from_checkpoint=True) build callbacks "
                "anew? Leave it at False: this one loads its state in any case"
            )
        super().__init__(make, on_rewire, after)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = (state.stateful_callbacks or {}).get(type(self).__name__, {})
        text = saved.get("attributes", {}).get("saved") if isinstance(saved, dict) else None
        if state.global_step and text is None:
            raise ValueError(
                f"RewirerCallback: training goes on after step {state.global_step}, expected a "
                "checkpoint with one RewirerCallback's state, got one without; was it saved by a "
                "Trainer with a RewirerCallback?"
            )
        own = _from_text(str(text)) if state.global_step else None
        self._attach(kwargs["model"], kwargs["optimizer"], state.max_steps, own)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._detach()

    def state(self) -> dict[str, Any]:
        """What trainer_state.json keeps."""
        if self.rewirer is None or self._handle is None:
            return {"args": {}, "attributes": {}}
        return {"args": {}, "attributes": {"saved": _as_text(self.rewirer.state_dict())}}


def _as_text(state: dict[str, Any]) -> str:
    """JSON holds no tensors, which the state of some methods has."""
    torch.save(state, file := io.BytesIO())
    return base64.b64encode(file.getvalue()).decode()


def _from_text(text: str) -> dict[str, Any]:
    return torch.load(io.BytesIO(base64.b64decode(text)), map_location="cpu", weights_only=True)
