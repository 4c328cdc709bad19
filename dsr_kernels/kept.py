"""Kept: containers and the tensors in them, to be put back as they were."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Kept:
    """What containers hold now: lists, dicts, sets and deques at any depth, and plain tensors.

    Other objects are not looked into. `fixed` are the ids of tensors that nothing will write to, so
    that they are not copied.
    """

    def __init__(self, containers: Iterable[Any], fixed: set[int]) -> None:
        self.containers: list[tuple[Any, list[Any]]] = []
        self.tensors: list[tuple[Tensor, Tensor, Tensor]] = []
        seen = set(fixed)
        todo: list[Any] = list(containers)
        while todo:
            value = todo.pop()
            if id(value) in seen:
                continue
            if isinstance(value, list | dict | set | deque | tuple):
                seen.add(id(value))
                todo += value.values() if isinstance(value, dict) else value
                if not isinstance(value, tuple):
                    self.containers.append((value, _items(value)))
            elif type(value) in (Tensor, nn.Parameter) and _has_numbers(value):
                seen.add(id(value))
                self.tensors.append((value, value.data, value.data.clone()))

    def put_back(self) -> None:
        """Gives each container its items and each tensor its memory and numbers."""
        for container, items in self.containers:
            if not _same(_items(container), items):
                container.clear()
                (container.extend if hasattr(container, "extend") else container.update)(items)
        for tensor, data, numbers in self.tensors:
            if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
                tensor.data = data
            if not torch.equal(data, numbers):
                data.copy_(numbers)  # a tensor's `data` takes that in and out of inference mode


def _has_numbers(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta


def _items(container: Any) -> list[Any]:
    return [*(container.items() if isinstance(container, dict) else container)]


def _same(now: list[Any], before: list[Any]) -> bool:
    """Whether both hold the same objects; the items of a dict are pairs made for the occasion."""
    if len(now) != len(before):
        return False
    return all(
        a is b or (type(a) is tuple is type(b) and [*map(id, a)] == [*map(id, b)])
        for a, b in zip(now, before, strict=True)
    )
