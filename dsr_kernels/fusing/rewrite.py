"""Puts steps in the place of layers: where in a graph which value may stay deferred."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from dsr_kernels.fusing import steps
from dsr_kernels.fusing.plain import is_unhooked, plain_class
from dsr_kernels.fusing.trace import is_layer
from dsr_kernels.nn.layers import SparseConv2d

ROLES: dict[type, str] = {
    SparseConv2d: "conv",
    nn.Conv2d: "conv",
    nn.BatchNorm2d: "norm",
    nn.ReLU: "relu",
    nn.Identity: "skip",
    nn.Dropout: "skip",
    nn.Dropout2d: "skip",
}
RELUS = (F.relu, torch.relu, torch.relu_)
SUMS = (operator.add, operator.iadd, torch.add)
IN_PLACE = {getattr(operator, name) for name in dir(operator) if name.startswith("i")} - {
    operator.index,
    operator.inv,
    operator.invert,
    operator.is_,
    operator.is_not,
    operator.itemgetter,
    operator.indexOf,
}
# Role -> those of the one step that may take what it has not made.
LATER = {
    "conv": ("norm", "add", "skip"),
    "norm": ("relu", "add", "skip"),
    "relu": ("skip",),
    "add": ("relu", "skip"),
    "skip": ("norm", "relu", "add", "skip"),
}
TAKEN = ("norm", "relu", "skip")  # roles whose result convolutions may compute while they read


class Plan:
    """What each node of a graph is, and how far its value is made."""

    def __init__(self, graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.nodes = list(graph.nodes)
        self.place = {node: index for index, node in enumerate(self.nodes)}
        self.roles: dict[fx.Node, str] = {}
        live = _live(self.nodes)
        for node in self.nodes:
            role = self._role(node)
            if role is not None and node in live:  # what nobody goes on with gets no gradient
                self.roles[node] = role
        self._barriers = [
            self.place[node]
            for node in self.nodes
            if (self.writes(node) and not self.own(node)) or self._has_hooks(node)
        ]
        for node in self.nodes:  # what others may see being written to is left alone
            if node in self.roles and self.writes(node) and not self.own(node):
                del self.roles[node]
        self.how: dict[fx.Node, str] = {}
        self._ends: dict[fx.Node, int] = {}
        for node in reversed(self.nodes):
            self._decide(node)

    # --- what a node is ---

    def module(self, node: fx.Node) -> nn.Module:
        return self.modules[str(node.target)]

    def _role(self, node: fx.Node) -> str | None:
        if node.op == "call_module":
            role = ROLES.get(plain_class(type(self.module(node))))
            return role if len(node.args) == 1 and not node.kwargs else None
        if not node.args or not isinstance(node.args[0], fx.Node):
            return None
        function, method = node.op == "call_function", node.op == "call_method"
        if (function and node.target in RELUS) or (method and node.target in ("relu", "relu_")):
            return "relu" if len(node.args) == 1 and set(node.kwargs) <= {"inplace"} else None
        if (function and node.target in SUMS) or (method and node.target in ("add", "add_")):
            two = len(node.args) == 2 and isinstance(node.args[1], fx.Node)
            return "add" if two and not node.kwargs else None
        return None

    def operands(self, node: fx.Node) -> list[fx.Node]:
        count = 2 if self.roles.get(node) == "add" else 1
        return [a for a in node.args[:count] if isinstance(a, fx.Node)]

    def writes(self, node: fx.Node) -> bool:
        """Whether it writes to a tensor that is there already, as far as can be told."""
        if node.op == "call_module":
            module = self.module(node)
            return bool(getattr(module, "inplace", False)) or not is_layer(module)
        if node.op == "call_method":
            name = str(node.target)
            return name.endswith("_") and not name.endswith("__")
        if node.op == "call_function":
            name = getattr(node.target, "__name__", "")
            ours = getattr(node.target, "__module__", None) or ""
            known = ours.split(".")[0] in ("torch", "_operator", "math", "builtins")
            named = name.endswith("_") and not name.endswith("__")
            told = bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None
            flag = node.target is F.relu and len(node.args) > 1 and bool(node.args[1])
            return node.target in IN_PLACE or named or told or flag or not (known or not ours)
        return False

    def own(self, node: fx.Node) -> bool:
        """Whether what it writes to is a fresh tensor that nobody else goes on with."""
        if node not in self.roles:
            return False
        first = self.operands(node)[0]
        return set(first.users) == {node} and self._is_fresh(first)

    def _is_fresh(self, node: fx.Node) -> bool:
        role = self.roles.get(node)
        if self._has_hooks(node):
            return False  # they may keep it
        if role in ("norm", "conv"):
            return True
        if role not in ("relu", "add"):
            return False
        return not self.writes(node) or self.own(node)

    def _has_hooks(self, node: fx.Node) -> bool:
        return node.op == "call_module" and not is_unhooked(self.module(node))

    # --- how far its value is made ---

    def crosses(self, start: fx.Node, end: int) -> bool:
        """Whether something may be written to between a node and a place."""
        return any(self.place[start] < barrier < end for barrier in self._barriers)

    def takers(self, node: fx.Node) -> list[fx.Node]:
        return [user for user in node.users if self.roles.get(user) == "conv"]

    def _decide(self, node: fx.Node) -> None:
        self._ends[node] = self.place[node]
        role = self.roles.get(node)
        if role is None:
            return
        users = list(node.users)
        end = max((self._ends[user] for user in users), default=self.place[node])
        once = len(users) == 1 and sum(a is node for a in users[0].all_input_nodes) == 1
        if users and not self.crosses(node, end):
            twice = once and list(users[0].args).count(node) > 1
            if once and not twice and self.roles.get(users[0]) in LATER[role]:
                self.how[node], self._ends[node] = "later", end
                return
            taken = len(self.takers(node)) == len(users) and self._may_be_taken(node, end)
            if role in TAKEN and taken:
                self.how[node], self._ends[node] = "takers", end
                return
        aware = any(user in self.roles for user in users)
        measured = bool(self.wanted(node))  # a tensor alone would lose its statistics
        self.how[node] = "held" if aware and (len(users) > 1 or measured) else "whole"

    def _may_be_taken(self, node: fx.Node, end: int) -> bool:
        """A ReLU keeps its result for backward, and a convolution that computes it keeps its input,
        to which others then may not write."""
        source = self.operands(node)[0]
        if self.roles[node] != "relu":
            return True
        alone = self.roles.get(source) in ("norm", "add") and set(source.users) == {node}
        if alone and not self.crosses(source, end):
            return True  # the input is never made
        later = any(barrier > self.place[node] for barrier in self._barriers)
        return not later and source.op != "placeholder"

    def wanted(self, node: fx.Node) -> list[fx.Node]:
        """The norms that go on with a sum or a convolution as it is stored."""
        users = [user for user in node.users if self.roles.get(user) == "norm"]
        return [user for user in users if not self.crosses(node, self.place[user])]

    def relied_on(self) -> set[str]:
        """Layers that must stay what they are: of another class, or with hooks, they might hand on
        their input to what writes to it, or write to it before a value is made of it."""
        found = set()
        for node in self.roles:
            if self.writes(node):
                found.update(self.operands(node)[:1])
            if self.how[node] in ("later", "takers"):
                window = self.nodes[self.place[node] + 1 : self._ends[node]]
                found.update(set(window) - self._chain(node))
        return {str(node.target) for node in found if node.op == "call_module"}

    def _chain(self, node: fx.Node) -> set[fx.Node]:
        """The nodes through which a value goes before it is made."""
        if self.how.get(node) not in ("later", "takers"):
            return set()
        return set(node.users).union(*map(self._chain, node.users))

    def is_worth_it(self) -> bool:
        """Whether anything would run otherwise than it was written."""
        later = any(how in ("later", "takers") for how in self.how.values())
        return later and any(
            isinstance(self.module(node), SparseConv2d)
            for node, role in self.roles.items()
            if role == "conv"
        )


def _live(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes that the output is made of."""
    live: set[fx.Node] = set()
    for node in reversed(nodes):
        if node.op == "output" or node in live:
            live.update((node, *node.all_input_nodes))
    return live


def rewrite(graph: fx.Graph, plan: Plan) -> None:
    """Replaces the nodes that have a role by steps."""
    for node in plan.nodes:
        if node not in plan.roles and len(node.users) > 1:
            _hold(graph, node, plan)
    layers = _Layers(graph, plan)
    for node in plan.nodes:
        if node in plan.roles:
            _replace(graph, node, plan, layers)
    graph.lint()


class _Layers:
    """The layers that steps are called with: each is looked up once, before the first step."""

    def __init__(self, graph: fx.Graph, plan: Plan) -> None:
        self.graph, self.start = graph, _last_placeholder(plan)
        self.known: dict[str, fx.Node] = {}

    def __call__(self, target: object) -> fx.Node:
        name = str(target)
        if name not in self.known:
            with self.graph.inserting_after(self.start):
                self.known[name] = self.graph.get_attr(name)
        return self.known[name]


def _hold(graph: fx.Graph, node: fx.Node, plan: Plan) -> None:
    """Has the steps that go on with `node` share one Held."""
    users = [
        user
        for user in node.users
        if user in plan.roles and not plan.crosses(node, plan.place[user])
    ]
    if users and node.op in ("placeholder", "call_module", "call_function", "call_method"):
        after = node if node.op != "placeholder" else _last_placeholder(plan)
        with graph.inserting_after(after):
            held = graph.call_function(steps.keep, (node,))
        for user in users:
            user.replace_input_with(node, held)


def _last_placeholder(plan: Plan) -> fx.Node:
    return [node for node in plan.nodes if node.op == "placeholder"][-1]


def _replace(graph: fx.Graph, node: fx.Node, plan: Plan, layers: _Layers) -> None:
    role, how = plan.roles[node], plan.how[node]
    with graph.inserting_before(node):
        args: tuple[Any, ...] = (*node.args[: 2 if role == "add" else 1], how)
        if node.op == "call_module":
            args = (layers(node.target), *args)
        elif role == "relu":
            args = (None, *args)
        others: Iterable[fx.Node] = ()
        if role in ("conv", "add") and how != "later":
            others = plan.wanted(node)
        elif how == "takers":
            others = plan.takers(node)
        if names := list(dict.fromkeys(str(other.target) for other in others)):
            args = (*args, tuple(map(layers, names)))
        in_place: dict[str, Any] = {"in_place": True} if role == "add" and plan.writes(node) else {}
        new = graph.call_function(getattr(steps, role), args, in_place)
    new.name = node.name
    made = None
    for user in list(node.users):
        aware = user in plan.roles and not plan.crosses(node, plan.place[user])
        if how != "whole" and not aware:
            if made is None:
                with graph.inserting_after(new):
                    made = graph.call_function(steps.tensor, (new,))
            user.replace_input_with(node, made)
        else:
            user.replace_input_with(node, new)
    graph.erase_node(node)
