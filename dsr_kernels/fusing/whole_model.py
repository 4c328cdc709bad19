"""fuse(model), which gives each module that can be traced a fused forward, and unfuse(model)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn
from torch.jit import ScriptModule

from dsr_kernels.fusing.classes import Spec, Variant, encode, fused_class, is_fused
from dsr_kernels.fusing.conditions import Condition
from dsr_kernels.fusing.notes import rows_of
from dsr_kernels.fusing.plain import is_unhooked, plain_class
from dsr_kernels.fusing.report import FuseReport
from dsr_kernels.fusing.rewrite import Plan, rewrite
from dsr_kernels.fusing.trace import (
    NotTraceable,
    Trace,
    has_forward,
    is_layer,
    made_by_torch,
    modules_through,
    trace,
)


def fuse(model: nn.Module, *, verbose: bool = True) -> FuseReport:
    """Has batch norm, ReLU and additions of `model` run inside its convolutions, in place.

    The model stays the same object, with the same class for isinstance, parameters, buffers and
    state_dict keys. Outputs, gradients and running statistics are those of before within rounding.
    Each call looks at the modules as they are then: layers with hooks, frozen or exchanged ones,
    and whatever the fused operations do not compute, run as they were written. docs/fusing.md has
    the rules. `unfuse` undoes it. Fuse a model again after its structure was changed.

    Returns what was fused, what was not and why, and prints it unless `verbose` is False.

    Raises TypeError where `model` is no torch.nn.Module.
    """
    unfuse(model)
    opaque: dict[nn.Module, str] = {}
    traces: dict[nn.Module, list[Trace]] = {}
    for module in reversed(list(model.modules())):  # what is inside comes first
        if is_layer(module) or not has_forward(module):
            continue
        if not is_unhooked(module):
            opaque[module] = "is inside of hooks"
        if hasattr(type(module), "plain_class") or made_by_torch(type(module)):
            opaque[module] = "is in a class that was made for it (parametrized, sharded)"
            continue
        try:
            traces[module] = _traces(module, set(opaque))
        except NotTraceable as error:
            opaque[module] = str(error)
    report = FuseReport()
    within: set[nn.Module] = set()  # of a larger one that is traced
    for name, module in model.named_modules():
        if module in opaque and _has_layers(module):
            report.not_traced[name or "the model"] = opaque[module]
        if module not in traces:
            continue
        plans = [Plan(each.graph, dict(module.named_modules())) for each in traces[module]]
        if module not in within:
            report.rows.extend(dict.fromkeys(rows_of(name, plans[0])))  # each layer once
            within |= set(modules_through(module, set(opaque)).values())
        if any(plan.is_worth_it() for plan in plans):
            _give_forward(module, traces[module], plans)
    if verbose:
        print(report)
    return report


def unfuse(model: nn.Module) -> nn.Module:
    """Undoes `fuse`: every module of `model` runs as it was written. Returns the model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if is_fused(module):
            object.__setattr__(module, "__class__", plain_class(type(module)))
    return model


def _traces(module: nn.Module, opaque: set[nn.Module]) -> list[Trace]:
    """The records of the forward of `module`: one, or one of training and one of inference."""
    flags = {m: m.training for m in module.modules() if not isinstance(m, ScriptModule)}

    def records() -> Iterator[Trace]:
        for mode in (True, False):
            for each in flags:
                each.training = mode
            yield (found := trace(module, opaque))
            if not found.depends_on_mode():
                return

    try:
        return list(records())
    finally:
        for each, mode in flags.items():
            each.training = mode


def _give_forward(module: nn.Module, traces: list[Trace], plans: list[Plan]) -> None:
    variants = []
    for each, plan in zip(traces, plans, strict=True):
        relied = [
            Condition(name, plain_class(type(module.get_submodule(name))), None, ())
            for name in sorted(plan.relied_on())
            if is_unhooked(module.get_submodule(name))
        ]
        rewrite(each.graph, plan)
        code = each.graph.python_code("self")
        words = set(re.findall(r"\w+", code.src))
        names = [encode(name, value) for name, value in code.globals.items() if name in words]
        variants.append(Variant(code.src, tuple(names), (*each.conditions, *relied), each.inputs))
    kind = fused_class(plain_class(type(module)), Spec(tuple(variants)))
    object.__setattr__(module, "__class__", kind)


def _has_layers(module: nn.Module) -> bool:
    return any(is_layer(child) for child in module.modules())
