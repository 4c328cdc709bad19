"""Rows of fuse's report, read off a plan: for each layer where it runs, or why it stays."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from dsr_kernels.fusing.plain import is_unhooked, plain_class
from dsr_kernels.fusing.report import Row
from dsr_kernels.fusing.rewrite import ROLES, Plan
from dsr_kernels.nn.layers import SparseConv1d, SparseConv2d, SparseLinear

ACTIVATIONS = (
    *(nn.ReLU6, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.Hardswish, nn.Hardtanh),
    *(nn.Sigmoid, nn.Tanh, nn.Mish, nn.CELU, nn.SELU, nn.Softplus),
)
OTHER_NORMS = (
    *(nn.SyncBatchNorm, nn.BatchNorm1d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.LocalResponseNorm),
)


def rows_of(prefix: str, plan: Plan) -> Iterator[Row]:
    """A row for each batch norm, ReLU, sum and convolution of a graph. Names begin with prefix."""
    start = f"{prefix}." if prefix else ""
    for node in plan.nodes:
        role = plan.roles.get(node)
        if role is None:
            row = _left(start, node, plan)
        else:
            row = _ROWS[role](start, node, plan) if role in _ROWS else None
        if row is not None:
            yield row


def _name(start: str, node: fx.Node) -> str:
    return f"{start}{node.target}" if node.op == "call_module" else node.name


def _kind(node: fx.Node, plan: Plan) -> str:
    return plain_class(type(plan.module(node))).__name__ if node.op == "call_module" else "ReLU"


def _norm(start: str, node: fx.Node, plan: Plan) -> Row:
    (source,) = plan.operands(node)
    taken = _statistics(start, source, node, plan)
    end, relu, plus = node, "", ""
    while plan.how[end] == "later":  # to where it is computed
        end = next(iter(end.users))
        relu = relu or (" with ReLU" if plan.roles[end] == "relu" else "")
        plus = plus or (" and the sum" if plan.roles[end] == "add" else "")
    if plan.how[end] == "takers" and not plus:
        names = ", ".join(_name(start, user) for user in plan.takers(end))
        return Row(_name(start, node), "BatchNorm2d", True, f"inside {names}{relu}; {taken}")
    fused = bool(relu or plus) or taken.startswith("stat")
    note = f"one pass{plus}{relu}; {taken}" if fused else "alone: neither neighbour takes it in"
    return Row(_name(start, node), "BatchNorm2d", fused, note)


def _statistics(start: str, source: fx.Node, node: fx.Node, plan: Plan) -> str:
    while plan.roles.get(source) == "skip":
        (source,) = plan.operands(source)
    role = plan.roles.get(source)
    told = plan.how.get(source) == "later" or node in plan.wanted(source)
    if role == "add" and told:
        inside = [a for a in plan.operands(source) if _waits(a, plan)]
        if inside:
            return f"statistics while {_name(start, inside[0])} stores the sum"
    if role == "conv" and told:
        return f"statistics while {_name(start, source)} stores"
    return "a pass for its statistics"


def _waits(node: fx.Node, plan: Plan) -> bool:
    return plan.roles.get(node) == "conv" and plan.how[node] == "later"


def _add(start: str, node: fx.Node, plan: Plan) -> Row:
    for operand in plan.operands(node):
        if plan.how.get(operand) != "later":
            continue
        if plan.roles[operand] == "conv":
            return Row(node.name, "+", True, f"while {_name(start, operand)} stores")
        if plan.roles[operand] == "norm":
            return Row(node.name, "+", True, f"in the pass of {_name(start, operand)}")
    return Row(
        node.name, "+", False, "neither operand comes straight from a convolution or batch norm"
    )


def _conv(start: str, node: fx.Node, plan: Plan) -> Row | None:
    module = plan.module(node)
    if isinstance(module, SparseConv2d) and not is_unhooked(module):
        return Row(_name(start, node), "SparseConv2d", False, "has hooks: computes by itself")
    if isinstance(module, SparseConv2d) and module.padding_mode != "zeros":
        note = f"padding_mode={module.padding_mode!r}: computes by itself"
        return Row(_name(start, node), "SparseConv2d", False, note)
    return None


def _left(start: str, node: fx.Node, plan: Plan) -> Row | None:
    """Layers without a role that a reader might look for."""
    if node.op != "call_module":
        return None
    module, name = plan.module(node), _name(start, node)
    kind = plain_class(type(module))
    if kind in ROLES:
        note = "writes over a tensor that others may see, or is called unusually"
        return Row(name, kind.__name__, False, note)
    if isinstance(module, tuple(ROLES)):
        return Row(name, kind.__name__, False, "of a class of its own")
    if isinstance(module, OTHER_NORMS):
        return Row(name, kind.__name__, False, "only BatchNorm2d is fused")
    if isinstance(module, ACTIVATIONS):
        return Row(name, kind.__name__, False, "only ReLU is fused")
    if isinstance(module, (SparseConv1d, SparseLinear)):
        return Row(name, kind.__name__, False, "only two-dimensional convolutions are fused")
    return None


_ROWS = {"norm": _norm, "add": _add, "conv": _conv}
