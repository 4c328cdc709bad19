"""The numbers per weight that optimizers hold of a layer: where they are and what they must fit."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from torch import Tensor, nn

from dsr_kernels.rewiring.fresh import Fresh, fresh_values
from dsr_kernels.rewiring.nested import (
    Table,
    held_parameters,
    hidden_tensors,
    nested_optimizers,
    state_tensors,
    tables,
)

# Of optimizers that factor a matrix's squared gradients (torch's Adafactor, transformers', CAME):
# the key of the column factor, here one number, and that of the row factor, one number per entry.
FACTORS = {
    "col_var": "row_var",
    "exp_avg_sq_col": "exp_avg_sq_row",
    "exp_avg_res_col": "exp_avg_res_row",
}
Holder = MutableMapping[Any, Any]  # a dict with tensors


class StateSlot(NamedTuple):
    """Where a tensor with a number per entry is held, and what a grown entry starts at."""

    holder: Holder
    key: Any
    fresh: float = 0.0


class Factor(NamedTuple):
    """Where a column factor is held, and the key of its row factor there."""

    holder: Holder
    key: str
    row: str

    def renew(self) -> None:
        """Of a single column the factor is the mean of the row factors; of several, a column for
        each row of a block, their mean is.
        """
        row, column = self.holder[self.row], self.holder[self.key]
        if not row.numel():
            return
        if column.numel() > 1 and (before := column.mean()) > 0:
            self.holder[self.key] = column * (row.mean() / before)
        else:
            self.holder[self.key] = row.mean().expand_as(column).clone()


@dataclass
class EntryState:
    """What optimizers hold of one layer that must move with its entries."""

    slots: list[StateSlot] = field(default_factory=list)
    factors: list[Factor] = field(default_factory=list)


class Remembered:
    """What some optimizers, and those within them, remember at this moment."""

    def __init__(self, *given: Any) -> None:
        self.optimizers = nested_optimizers(*given)
        self.tables = tables(self.optimizers)
        self.held = held_parameters(self.optimizers)
        groups = {id(group): group["params"] for _, group in self.held.values()}
        own = self.held.keys() | {id(p.grad) for group in groups.values() for p in group}
        self._hidden = [
            (optimizer, attribute, tensor)
            for optimizer in self.optimizers
            for attribute, tensor in hidden_tensors(optimizer)
            if id(tensor) not in own
        ]
        self._sizes = {id(one): _size(one) for one in self.optimizers}
        # Of each optimizer: what is under another parameter or name in its state, in one dimension.
        self._flat = [
            (optimizer, parameter, key, tensor)
            for optimizer in self.optimizers
            for parameter, key, tensor in state_tensors(optimizer)
            if tensor.dim() == 1
        ]
        self._around = {id(one) for one in self.optimizers if len(nested_optimizers(one)) > 1}

    def of(
        self,
        name: str,
        parameter: nn.Parameter,
        blocks: int,
        among: Callable[[Holder, Any], bool] | None = None,
    ) -> EntryState:
        """All that is held of the entries of a layer; `among` chooses by dict and key.

        Scalars such as Adam's `step` belong to no entry and are left out. Raises ValueError for a
        state tensor that is neither, that does not fit `blocks` entries, or that is not kept under
        the parameter: it would silently become wrong.
        """
        self._refuse_hidden(name, parameter, blocks)
        found = EntryState()
        for table, holder, keys in self._holders(parameter):
            if among is not None:
                keys = [key for key in keys if among(holder, key)]
            inner = holder is not table.content
            whose = _Whose(name, table.owner)
            keys = [
                key
                for key in keys
                if _per_entry(whose, key if inner else table.name, holder[key], parameter, blocks)
            ]
            fresh = self._fresh(table, parameter) if inner and keys else {}
            found.slots += [StateSlot(holder, key, fresh.get(key, 0.0)) for key in keys]
            if inner:
                found.factors += [
                    Factor(holder, key, row)
                    for key, row in FACTORS.items()
                    if key in holder and row in keys
                ]
        return found

    def check_sizes(self, name: str, parameter: nn.Parameter) -> None:
        """Raises ValueError for state of another size than the parameter: a fused step would write
        beyond its end. Under a fused optimizer nothing but `step` may have one number for all.
        """
        _, group = self.held.get(id(parameter), (None, None))
        for table, holder, keys in self._holders(parameter):
            whose = _Whose(name, table.owner, "cannot make a step of")
            for key in keys:
                value = holder[key]
                if not isinstance(value, Tensor) or key in FACTORS:
                    continue
                if group is not None and group.get("fused") and key != "step":
                    whose.check_shape(key, value, parameter.shape, [parameter.shape])
                elif value.dim():
                    _fits(whose, key, value, parameter, parameter.shape[0])

    def holders(self, parameter: nn.Parameter) -> list[Holder]:
        """The dicts that hold what is remembered of a parameter."""
        return [holder for _, holder, _ in self._holders(parameter)]

    def _holders(self, parameter: nn.Parameter) -> Iterator[tuple[Table, Holder, list[Any]]]:
        """(table, the dict that holds the tensors, their keys there): the dict is the parameter's
        own or, where the table has a tensor by parameter, the table itself.
        """
        for table in self.tables:
            if parameter in table.content:
                held = table.content[parameter]
                if isinstance(held, MutableMapping):
                    yield table, held, list(held)
                else:
                    yield table, table.content, [parameter]

    def _fresh(self, table: Table, parameter: nn.Parameter) -> Fresh:
        _, group = self.held.get(id(parameter), (None, None))
        if group is None or id(table.owner) in self._around:
            return {}  # what wrappers keep is a copy of the weight, which grows at 0
        return fresh_values(table.owner, group, parameter)

    def _refuse_hidden(self, name: str, parameter: nn.Parameter, blocks: int) -> None:
        """Raises ValueError for tensors of the values' shape that no parameter is the key of, and
        for those with the entries of all parameters in one.
        """
        shape = blocks, *parameter.shape[1:]
        grows = math.prod(shape) - parameter.numel()
        totals = {id(one): self._total(one, parameter, grows) for one in self.optimizers}
        for optimizer, attribute, tensor in self._hidden:
            where = f"in its attribute {attribute!r}"
            if blocks > 1 and tensor.shape in (shape, shape[:1]):
                _refuse_tensor(
                    optimizer,
                    f"a tensor of shape {tuple(tensor.shape)}, which has an entry for each of the "
                    f"values of layer {name!r}, {where}",
                )
            if tensor.dim() == 1 and tensor.numel() == totals[id(optimizer)]:
                _refuse_tensor(optimizer, f"one tensor of all parameters, {where}", name)
        for optimizer, other, key, tensor in self._flat:
            if tensor.numel() == totals[id(optimizer)] and other is not parameter:
                _refuse_tensor(optimizer, f"one tensor of all parameters, in state {key!r}", name)

    def _total(self, optimizer: Any, parameter: nn.Parameter, grows: int) -> int:
        """How many numbers the parameters of an optimizer have, with a layer that grows; -1 where
        it does not hold the layer, or nothing else.
        """
        own, total = self._sizes[id(optimizer)]
        return total + grows if id(parameter) in own and len(own) > 1 else -1


def _size(optimizer: Any) -> tuple[set[int], int]:
    """The ids of its parameters, and how many numbers they have together."""
    parameters = [p for group in getattr(optimizer, "param_groups", ()) for p in group["params"]]
    return {id(p) for p in parameters}, sum(p.numel() for p in parameters)


def _refuse_tensor(optimizer: Any, what: str, layer: str = "") -> NoReturn:
    raise ValueError(
        f"optimizer: {type(optimizer).__name__} keeps {what}, where it cannot be told "
        f"{f'which part belongs to layer {layer!r}' if layer else 'whose it is'}, nor moved in a "
        "rewire; keep it in a dict that has the parameters as keys, as `state` has"
    )


class _Whose(NamedTuple):
    """Whose state it is, for messages."""

    layer: str
    optimizer: Any
    hindered: str = "cannot rewire under"

    def refuse(self, key: Any, found: str, cure: str = "") -> NoReturn:
        raise ValueError(
            f"optimizer: state {key!r} of layer {self.layer!r} {found}: {self.hindered} "
            f"{type(self.optimizer).__name__}{cure}"
        )

    def check_shape(self, key: Any, value: Tensor, expected: Any, right: Any) -> None:
        if value.shape not in right:
            self.refuse(
                key,
                f"has shape {tuple(value.shape)}, expected {tuple(expected)}",
                "; load model and optimizer from the same checkpoint, or build the optimizer anew",
            )

    @property
    def may_share(self) -> bool:
        """Whether a tensor of one number may stand for all entries: torch's have no other than the
        column factors.
        """
        return not type(self.optimizer).__module__.startswith("torch.optim")


def _per_entry(whose: _Whose, key: Any, value: Any, parameter: nn.Parameter, blocks: int) -> bool:
    """Whether it has a number per entry. Raises ValueError where that cannot be told or moved."""
    if not isinstance(value, Tensor):
        if _holds_tensors(value):
            whose.refuse(key, f"is a {type(value).__name__} of tensors, expected a tensor")
        return False
    if value.dim() == 0 or not _fits(whose, key, value, parameter, blocks):
        return False
    if type(value) not in (Tensor, nn.Parameter):
        whose.refuse(key, f"is a {type(value).__name__}, expected a plain tensor")
    if value.device != parameter.device:
        whose.refuse(key, f"is on {value.device}, expected {parameter.device}")
    return True


def _fits(whose: _Whose, key: Any, value: Tensor, parameter: nn.Parameter, blocks: int) -> bool:
    """Whether a tensor with dimensions has a number per entry; False: one for all. Raises
    ValueError for any other shape.
    """
    if key in FACTORS or (value.numel() == 1 and blocks > 1 and whose.may_share):
        return False
    expected = (blocks, *parameter.shape[1:])
    right = (expected, expected[:1], *(((blocks, 1),) if key in FACTORS.values() else ()))
    whose.check_shape(key, value, expected, right)
    return True


def _holds_tensors(value: Any) -> bool:
    """Whether a container has per-entry tensors somewhere inside."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple | set | deque):
        return False
    return any((isinstance(v, Tensor) and v.dim() > 0) or _holds_tensors(v) for v in value)
