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
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from dsr_kernels.nn.leaf import set_data
from dsr_kernels.nn.pattern_owner import PatternOwner

_parallel: weakref.WeakSet[nn.Module] = weakref.WeakSet()
# The class attribute of a DistributedDataParallel that takes parameters of other lengths.
FOLLOWS = "follows_rewires"


def note_parallel(ddp: nn.Module) -> None:
    """Knows a DistributedDataParallel from now on; a copy or a pickle says so itself."""
    _parallel.add(ddp)


def parallel_of(parameters: Iterable[nn.Parameter]) -> list[nn.Module]:
    """The living DistributedDataParallels that hold one of these parameters."""
    if not _parallel:
        return []
    own = {id(parameter) for parameter in parameters}
    return [ddp for ddp in list(_parallel) if any(id(held) in own for held in ddp.parameters())]


def _remember(module: nn.Module, name: str, child: nn.Module | None) -> None:
    """Notes each DistributedDataParallel: it holds nodes where Python cannot see them. Torch's own
    is about to send its first process's tensors, values and indices, to all others.
    """
    if name == "module" and child is not None and isinstance(module, DistributedDataParallel):
        note_parallel(module)
        for owner in () if hasattr(module, FOLLOWS) else child.modules():
            if isinstance(owner, PatternOwner):
                owner.expect_broadcast()


register_module_module_registration_hook(_remember)


def note_parallels_of(model: nn.Module) -> None:
    """Notes those that no hook has seen: copies and pickles of torch's own."""
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            note_parallel(module)


def refuse_held(parameter: nn.Parameter, size: int, label: str) -> None:
    """Raises RuntimeError if a change of the parameter's length would leave somebody behind."""
    if size == parameter.shape[0] or parameter.is_inference() or not parameter.requires_grad:
        return
    change = f"{label}: its number of non-zeros cannot change from {parameter.shape[0]} to {size}"
    if any(not hasattr(ddp, FOLLOWS) for ddp in parallel_of([parameter])):
        raise RuntimeError(
            f"{change} inside a torch.nn.parallel.DistributedDataParallel, which would no longer "
            "average its gradients; wrap the model in "
            "dsr_kernels.distributed.DistributedDataParallel instead"
        )
    if is_held(parameter):
        raise RuntimeError(
            f"{change} while something holds its gradient accumulator, such as a hook that was "
            "put on `grad_fn.next_functions`: it would never run again; use "
            "weight_values.register_post_accumulate_grad_hook instead, which stays"
        )


def is_held(parameter: nn.Parameter) -> bool:
    """Whether something has the node as a Python object, and would keep it."""
    if not parameter.requires_grad or parameter.is_inference():
        return False
    return _references(parameter) > _references_of_none()


def give_data(parameter: nn.Parameter, data: Tensor) -> None:
    """As set_data. Where the length changes, and so the node, a DistributedDataParallel that can
    follow is told.
    """
    is_renewed = data.shape != parameter.shape
    set_data(parameter, data)
    for ddp in parallel_of([parameter]) if is_renewed else ():
        if hasattr(ddp, FOLLOWS):
            ddp.expect_renewed(parameter)  # type: ignore[operator]


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
    with torch.inference_mode(False):  # whatever the first call comes from
        return _references(nn.Parameter(torch.zeros(1)))
