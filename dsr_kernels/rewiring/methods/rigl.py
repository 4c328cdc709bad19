"""The rigged lottery (Evci et al., ICML 2020)."""

from __future__ import annotations

from dsr_kernels.rewiring.methods.layerwise import LayerwiseRewirer


class RigL(LayerwiseRewirer):
    """Each layer loses its smallest weights and grows as many where the gradient is largest.

    The fraction that goes falls along a cosine from `fraction` (alpha) at the start to 0 at `stop`
    (or after `length` iterations). Arguments are those of `LayerwiseRewirer`. Two departures from
    the paper: what was pruned may not come back at once, as everywhere in this library; and the
    optimizer makes its step before a rewire too.
    """

    FRACTION_SCHEDULE = "cosine"
    GROWTH = "gradient"
