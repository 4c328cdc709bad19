"""Who looks on while sparse layers compute: methods that grow by gradient."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from dsr_kernels.backends.conv_shape import ConvShape

# Who wants to see what weights' gradients are made of; empty but where a method asks for it.
watchers: list[weakref.ref[Watcher]] = []


class Watcher(Protocol):
    """Learns of the passes of every sparse layer in eager mode, while it lives."""

    def used(self, values: Tensor) -> None:
        """A forward pass with gradients has used this weight."""

    def passed(self, values: Tensor, x: Tensor, grad: Tensor, shape: ConvShape) -> None:
        """A backward pass has come to a use of this weight.

        x [N, C, H, W] and grad [N, O, P, Q] are the layer's input and its output's gradient; a
        linear layer is a 1x1 convolution of 1x1 images.
        """


def watch(watcher: Watcher) -> None:
    """Has `watcher` told of every pass, until it dies; a compiled pass tells nobody."""
    watchers.append(weakref.ref(watcher, watchers.remove))


def unwatch(watcher: Watcher) -> None:
    watchers[:] = [reference for reference in watchers if reference() is not watcher]


def living() -> Iterator[Watcher]:
    """The watchers of now; one that dies or leaves meanwhile disturbs nobody."""
    for reference in tuple(watchers):
        if (watcher := reference()) is not None:
            yield watcher
