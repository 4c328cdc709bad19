"""Who else holds the node of autograd that accumulates a parameter's gradient.

Autograd keeps a parameter's size in that node, so a parameter that changes its size gets a new one.
Whoever holds the old one would wait for gradients for ever: a DistributedDataParallel would no
longer average them, a hook on the node (an optimizer in the backward pass) would never run again.
Both without a word, so the change of size is refused instead.
"""

from __future__ import annotations

import functools
import sys
import weakref

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from dsr_kernels.nn.pattern_owner import PatternOwner

_parallel: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _remember(module: nn.Module, name: str, child: nn.Module | None) -> None:
    """Notes each DistributedDataParallel: it holds nodes where Python cannot see them. It is about
    to send its first process's tensors, values and indices, to all others.
    """
    if name == "module" and child is not None and isinstance(module, DistributedDataParallel):
        _parallel.add(module)
        for owner in child.modules():
            if isinstance(owner, PatternOwner):
                owner.expect_broadcast()


register_module_module_registration_hook(_remember)


def refuse_held(parameter: nn.Parameter, size: int, label: str) -> None:
    """Raises RuntimeError if a change of the parameter's length would leave somebody behind."""
    if size == parameter.shape[0] or not parameter.requires_grad or parameter.is_inference():
        return
    change = f"{label}: its number of non-zeros cannot change from {parameter.shape[0]} to {size}"
    if any(parameter is held for ddp in list(_parallel) for held in ddp.parameters()):
        raise RuntimeError(
            f"{change} inside a DistributedDataParallel, which would no longer average its "
            "gradients; change it before wrapping the model, or use a method that leaves each "
            "layer's number as it is (SET, RigL)"
        )
    if _references(parameter) > _references_of_none():
        raise RuntimeError(
            f"{change} while something holds its gradient accumulator, such as a hook that was "
            "put on `grad_fn.next_functions`: it would never run again; use "
            "weight_values.register_post_accumulate_grad_hook instead, which stays"
        )


@torch.enable_grad()
def _references(parameter: nn.Parameter) -> int:
    """To the node's Python object. A graph of our own holds it, so every count has that one."""
    with torch.inference_mode(False):
        graph = parameter.view_as(parameter)
        node = get_gradient_edge(parameter).node
        count = sys.getrefcount(node)
        del graph
    return count


@functools.cache
def _references_of_none() -> int:
    return _references(nn.Parameter(torch.zeros(1)))
