"""The rigged lottery (Evci et al., ICML 2020)."""

from __future__ import annotations

from dsr_kernels.rewiring.methods.layerwise import LayerwiseRewirer


class RigL(LayerwiseRewirer):
    """Each layer loses its smallest weights and grows as many where the gradient is largest.

    The fraction that is pruned falls along a cosine from `fraction` (alpha) at the start to 0 at
    `stop` (or after `length` iterations). Arguments are those of `LayerwiseRewirer`. There are two
    departures from the paper. What was pruned does not grow again at once, as everywhere in this
    library. The optimizer makes its step before a rewire too.
    """

    FRACTION_SCHEDULE = "cosine"
    GROWTH = "gradient"
