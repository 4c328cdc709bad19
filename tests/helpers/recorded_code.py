"""Functions and variables that forwards reach through this module, for tests of fuse."""

from __future__ import annotations

import enum

import torch

flag = True
factors = [2.0]
asks = torch.is_grad_enabled


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


mode = Mode.FAST


class Settings:
    double = True


def centred(x):
    with torch.no_grad():
        mean = x.mean((2, 3), keepdim=True)
    return x - mean


def by_gradients(x):
    return x * 2 if asks() else x


def by_list(x):
    return x * factors[0]


def by_flag(x):
    return x * 2 if flag else x


def by_mode(x):
    return x * 2 if mode is Mode.FAST else x


by_mode.factor = 2
