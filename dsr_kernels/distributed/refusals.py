"""What a DistributedDataParallel that follows rewires cannot have, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import nn

# Arguments of torch's that cannot outlive a change of size.
ARGUMENTS = {
    "mixed_precision": "use torch.autocast, and bf16_compress_hook for the gradients",
    "delay_all_reduce_named_params": "its buffer has a fixed size",
    "device_mesh": "give process_group=mesh.get_group() of a mesh with one dimension",
}
# States of communication hooks, by their class.
HOOKS = {
    "PowerSGDState": "PowerSGD keeps an error for each bucket, whose size changes in a rewire",
    "PostLocalSGDState": (
        "post-local SGD lets the weights of processes differ, and a rewire needs the same ones"
    ),
}


def refuse_arguments(given: Mapping[str, Any]) -> None:
    """Raises ValueError for arguments of torch's that cannot be."""
    for name, instead in ARGUMENTS.items():
        if given.get(name) is not None:
            raise ValueError(
                f"{name}: a DistributedDataParallel that follows rewires cannot have it; {instead}"
            )


def refuse_hook(state: object) -> None:
    """Raises ValueError for the state of a communication hook that cannot be."""
    for kind in type(state).__mro__:
        if reason := HOOKS.get(kind.__name__):
            raise ValueError(f"hook: {reason}; use bf16_compress_hook or fp16_compress_hook")


def refuse_join() -> NoReturn:
    raise NotImplementedError(
        "join: a process that has run out of batches would not rewire with the others; give "
        "all processes as many batches (DistributedSampler, drop_last=True)"
    )


def refuse_python_reducer() -> None:
    """Raises ValueError where torch would put hooks on parameters that know their first sizes."""
    if torch._dynamo.config.optimize_ddp == "python_reducer":
        raise ValueError(
            "torch._dynamo.config.optimize_ddp: expected True or False, got 'python_reducer', "
            "which knows parameters by their first sizes"
        )


def refuse_optimizers_in_backward(module: nn.Module | None = None) -> None:
    """Raises ValueError where a parameter has an optimizer in the backward pass; without a module,
    it is about to get one.
    """
    if module is None:
        way = "_register_fused_optim"
    elif any(hasattr(parameter, "_in_backward_optimizers") for parameter in module.parameters()):
        way = "_apply_optimizer_in_backward"
    else:
        return
    raise ValueError(
        f"module: a parameter has its optimizer in the backward pass ({way}), so no rewirer could "
        "move its state; call step() of an ordinary optimizer"
    )
