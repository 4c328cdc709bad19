"""Kept: what containers hold is put back, whatever was done to it."""

from __future__ import annotations

from collections import deque

import torch
from torch import nn

from dsr_kernels.kept import Kept


def test_containers_of_every_kind_get_their_items_back_in_order():
    inner, plain = [1], object()
    held = {"list": [inner, 2], "set": {3, plain}, "deque": deque([4, inner]), "pair": (inner,)}
    before = {name: value.copy() if name != "pair" else value for name, value in held.items()}
    parts = dict(held)
    kept = Kept([held], set())
    inner.append(5)
    held["list"].reverse()
    held["set"].add(6)
    held["deque"].popleft()
    del held["pair"]
    held["new"] = 7
    kept.put_back()
    assert held == before and inner == [1]
    assert all(held[name] is part for name, part in parts.items())


def test_tensors_get_their_memory_shape_and_numbers_back():
    with torch.inference_mode():
        frozen = torch.ones(3)
    held = [torch.ones(3), nn.Parameter(torch.ones(3)), torch.ones(3), torch.ones(3), frozen]
    memory = [tensor.data_ptr() for tensor in held]
    kept = Kept([held], {id(held[3])})
    held[0].data = held[0].data[:2]
    held[1].data = torch.zeros(3)
    held[2] += 1
    held[3] += 1
    with torch.inference_mode():
        frozen += 1
    kept.put_back()
    assert [tensor.data_ptr() for tensor in held] == memory
    for tensor in (*held[:3], frozen):
        assert torch.equal(tensor, torch.ones(3))
    assert torch.equal(held[3], torch.full((3,), 2.0))  # which was said to be fixed
