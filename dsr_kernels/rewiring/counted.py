"""Of a rewirer's optimizers the one whose steps are its iterations."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from dsr_kernels.rewiring.layers import SparseLayer
from dsr_kernels.rewiring.nested import held_parameters, nested_optimizers
from dsr_kernels.rewiring.optimizers import Optimizers

# Packages whose optimizers around others do nothing to weights after the inner step.
TRANSPARENT = ("accelerate", "lightning", "lightning_fabric", "pytorch_lightning")


def find_counted(
    optimizers: Optimizers, layers: list[SparseLayer], after: Any = None
) -> tuple[Optimizer, list[Optimizer]]:
    """That one, and the others around it whose steps call hooks.

    after: who it is; None: the one that holds all layers.

    Raises ValueError where none or several hold layers, where `after` is none of them, or where its
    steps call no hooks, and, unless `after` says so, where those of one around it call none.
    """
    if not optimizers.given:
        raise ValueError(
            "attach: expected a rewirer with an optimizer, whose steps it counts, got one without"
        )
    counted = _only_holder(optimizers.all, layers) if after is None else after
    if not any(counted is one for one in optimizers.all):
        raise ValueError(
            f"after: expected an optimizer of the rewirer, {_kinds(optimizers.all)}, got "
            f"{type(counted).__name__}"
        )
    if not is_hooked(counted):
        argument, kind = "attach" if after is None else "after", type(counted).__name__
        raise ValueError(
            f"{argument}: steps of {kind} call no hooks, for it never called "
            "torch.optim.Optimizer's constructor; name the optimizer within it as `after`, or call "
            f"rewirer.step() yourself after {kind}'s"
        )
    around = [one for one in optimizers.all if one is not counted and _holds(one, counted)]
    for one in around if after is None else ():
        if not is_hooked(one) and type(one).__module__.partition(".")[0] not in TRANSPARENT:
            raise ValueError(
                f"attach: {type(one).__name__} is around {type(counted).__name__}, and its own "
                "steps call no hooks: a rewire would come before what it does after the inner "
                f"step. If that is right, pass the {type(counted).__name__} as `after`; else call "
                f"rewirer.step() yourself after {type(one).__name__}'s"
            )
    return counted, [one for one in around if is_hooked(one)]


def is_hooked(optimizer: Any) -> bool:
    """Whether hooks can be put on its steps, which torch has its constructor see to."""
    return (
        isinstance(optimizer, Optimizer)
        and hasattr(optimizer, "_optimizer_step_post_hooks")
        and getattr(type(optimizer).step, "hooked", False)
    )


def _only_holder(optimizers: list[Any], layers: list[SparseLayer]) -> Any:
    """The one that holds the values of all layers, itself or within it."""
    held = held_parameters(optimizers)
    holders = [held[id(x.weight_values)][0] for x in layers if id(x.weight_values) in held]
    for one in holders:
        if all(other is one or _holds(one, other) for other in holders):
            return one
    kinds = _kinds(list({id(one): one for one in holders}.values()))
    raise ValueError(
        f"after: expected the optimizer that steps last in an iteration, for {kinds or 'none'} "
        "hold sparse layers"
    )


def _holds(outer: Any, inner: Any) -> bool:
    return any(one is inner for one in nested_optimizers(outer))


def _kinds(optimizers: list[Any]) -> str:
    return " and ".join(type(one).__name__ for one in optimizers)
