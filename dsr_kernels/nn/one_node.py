"""Sparse layers under torch.fx: one node of the graph each, as the layers of torch.nn.

A tracer takes modules outside torch.nn apart unless its user says otherwise, and what a sparse
layer asks of its input has no answer before there is one. So the layer itself writes its node. The
graph's module holds the layer: its parameter, its pattern, and whatever a rewire makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.fx import Proxy, _symbolic_trace
from torch.nn.utils.prune import BasePruningMethod
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dsr_kernels.nn.pattern_owner import PatternOwner

WAY_OUT = "trace with a torch.fx.Tracer whose is_leaf_module is true for every SparseModule"
# Whether torch.fx traces now. Older versions of torch have the second alone; newer ones warn of it.
is_tracing: Callable[[], bool] = getattr(
    *(_symbolic_trace, "is_fx_symbolic_tracing", _symbolic_trace.is_fx_tracing)
)


def one_node(layer: PatternOwner, x: Proxy) -> Any:
    """The call of the layer, which the graph's module makes when it runs.

    Raises ValueError where the layer itself is what is traced, for no graph can hold it then, and
    where it has forward hooks: they have seen the tracer's stand-in by now or are about to, and
    would run again in the graph. Raises NameError, as torch does, for a layer that is not in the
    module that is traced.
    """
    tracer: Any = x.tracer
    path = tracer.path_of_module(layer)
    if not path:
        raise ValueError(
            f"{layer.label()}: torch.fx makes one node of a sparse layer, so it can trace a model "
            "that holds the layer, not the layer alone; trace nn.Sequential(layer)"
        )
    if _has_hooks(layer):
        raise ValueError(
            f"layer {path!r}: its hooks would run twice, when torch.fx traces the layer and in the "
            f"graph; remove them first and register them on the graph's module, or {WAY_OUT}"
        )
    return tracer.create_proxy("call_module", path, (x,), {})


def refuse_constant(layer: PatternOwner) -> None:
    """Raises ValueError: the layer computes on a tensor while torch.fx traces the model.

    Not within make_fx and torch.export, which trace tensors: they are dispatch modes.
    """
    if is_in_torch_dispatch_mode():
        return
    raise ValueError(
        f"{layer.label()}: its input does not depend on what the traced model is called with (a "
        "buffer, say), so torch.fx would keep the output as a constant and lose the layer; "
        f"{WAY_OUT}"
    )


def _has_hooks(layer: PatternOwner) -> bool:
    """Whether it has hooks that a tracer sees. Those of torch's pruning may run twice."""
    hooks: list[Iterable[Any]] = [layer._forward_hooks.values(), layer._forward_pre_hooks.values()]
    if layer._is_full_backward_hook is False:  # the old kind looks for a tensor in the output
        hooks.append(layer._backward_hooks.values())
    return any(not isinstance(hook, BasePruningMethod) for found in hooks for hook in found)
