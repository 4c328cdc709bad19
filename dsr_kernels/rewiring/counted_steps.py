"""What an attachment asks of an optimizer: whether it was loaded, whether a step counts."""

from __future__ import annotations

import warnings
from typing import Any

from torch.optim import Optimizer

from dsr_kernels.rewiring.nested import was_loaded

STATE_KEY = "dsr_kernels"  # of a rewirer's state in its optimizer's


def warn_if_loaded(optimizers: list[Optimizer]) -> None:
    for one in optimizers:
        if was_loaded(one):
            kind = type(one).__name__
            warnings.warn(
                f"attach: this rewirer starts at iteration 0, but {kind} has loaded a state "
                "already, and a rewirer's state in it, if any, was dropped. To go on, attach "
                f"before {kind}.load_state_dict(...), or call rewirer.load_state_dict("
                f"state[{STATE_KEY!r}]) before you attach",
                stacklevel=3,
            )
            return


def is_rehearsal(optimizer: Any) -> bool:
    """Whether torch.distributed.checkpoint makes this step, only to have state be made: with a
    learning rate of 0 and gradients of 0, before any other step.
    """
    groups = optimizer.param_groups
    if optimizer.state or any(float(group.get("lr", 0)) != 0 for group in groups):
        return False
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    return bool(gradients) and not any(bool(gradient.any()) for gradient in gradients)


def was_left_out(optimizer: Any) -> bool:
    """Whether a GradScaler has found infinities: a fused optimizer's step then changes nothing."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
