"""Steps of which there can be no graph: a replay would leave out what they do on the host."""

from __future__ import annotations

import torch
from torch import nn

from dsr_kernels.cuda.look import hooks_of
from dsr_kernels.cuda.recording import Step
from dsr_kernels.nn.accumulators import parallel_of
from dsr_kernels.ops import watch
from dsr_kernels.rewiring.attach import Attachment
from dsr_kernels.rewiring.gradient_growth import GradientWatch
from dsr_kernels.rewiring.nested import nested_optimizers
from dsr_kernels.rewiring.state_patterns import StatePatterns

PARALLEL = ("DistributedDataParallel", "FullyShardedDataParallel", "DataParallel")


def why_eager(step: Step) -> str | None:
    """In words; None: nothing is known that is against a graph."""
    optimizer, scaler = step.optimizer, step.scaler
    kind = type(optimizer).__name__
    parameters = [p for p in step.model.parameters() if isinstance(p, nn.Parameter)]
    if any(name in _kinds(step.model) for name in PARALLEL) or parallel_of(parameters):
        return "several processes or devices train the model"
    devices = {str(p.device) for p in parameters}
    if len(devices) > 1:
        return f"the model is on several devices: {', '.join(sorted(devices))}"
    if len(nested_optimizers(optimizer)) > 1:
        return f"{kind} is around another optimizer"
    if any(not _is_ours(hook) for hooks in hooks_of(optimizer) for hook in hooks.values()):
        return f"{kind} has hooks on its steps, which replays would not call"
    if scaler.is_enabled():
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            return f"GradScaler waits for the GPU in each step of {kind}; build it with fused=True"
        if attachments_of(optimizer):
            return (
                "an attached rewirer counts only the steps that GradScaler makes, and asks the GPU "
                "in each; pass the rewirer without attaching it, to count all"
            )
    return None


def is_watched(step: Step) -> bool:
    """Whether somebody looks on in Python at what the step computes."""
    parameters = step.parameters()
    return any(
        not isinstance(watcher, GradientWatch) or watcher.looks_at(parameters)
        for watcher in watch.living()
    )


def attachments_of(optimizer: torch.optim.Optimizer) -> list[Attachment]:
    """The handles of rewirers that are attached to it."""
    own = [getattr(hook, "__self__", None) for hook in hooks_of(optimizer)[1].values()]
    return [one for one in own if isinstance(one, Attachment)]


def _is_ours(hook: object) -> bool:
    owner = getattr(hook, "__self__", hook)
    return isinstance(owner, Attachment | StatePatterns)


def _kinds(model: nn.Module) -> set[str]:
    return {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
