"""Which thread changes which layers now: two that change one layer at once are refused."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Sequence

from dsr_kernels.backends.held import exchange
from dsr_kernels.nn.pattern_owner import PatternOwner

_changed_by: weakref.WeakKeyDictionary[PatternOwner, int] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def changing(layers: Sequence[PatternOwner]) -> Iterator[None]:
    """This thread gives the layers another pattern or other values meanwhile.

    Raises RuntimeError, naming the layer, where another thread does so with one of them.
    """
    own = threading.get_ident()
    with exchange:
        for layer in layers:
            if _changed_by.get(layer, own) != own:
                raise RuntimeError(
                    f"{layer.label()}: another thread rewires or loads it at this moment; let one "
                    "thread at a time change a model, such as the one that trains it"
                )
        added = [layer for layer in layers if layer not in _changed_by]
        _changed_by.update(dict.fromkeys(added, own))
    try:
        yield
    finally:
        with exchange:
            for layer in added:
                _changed_by.pop(layer, None)
