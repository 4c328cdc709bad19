"""Sparse evolutionary training (Mocanu et al., Nature Communications 2018)."""

from __future__ import annotations

from dsr_kernels.rewiring.methods.layerwise import LayerwiseRewirer


class SET(LayerwiseRewirer):
    """Each layer loses its smallest weights and grows as many at random in the same layer.

    As the paper of DSR runs it: the share of every layer that is lowest in magnitude, the same at
    every rewire (`fraction`, `fraction_schedule="constant"`), so layers never trade non-zeros.
    Arguments are those of `LayerwiseRewirer`.
    """
