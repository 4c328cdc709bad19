"""Sparse evolutionary training (Mocanu et al., Nature Communications 2018)."""

from __future__ import annotations

from dsr_kernels.rewiring.methods.layerwise import LayerwiseRewirer


class SET(LayerwiseRewirer):
    """Each layer loses its smallest weights and grows as many at random in the same layer.

    This is SET as the paper of DSR runs it: every rewire prunes the same `fraction` of each layer
    (`fraction_schedule="constant"`), and layers never trade non-zeros. Arguments are those of
    `LayerwiseRewirer`.
    """
