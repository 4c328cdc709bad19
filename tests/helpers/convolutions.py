"""Convolutions of every build, drawn by hypothesis."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

PADDINGS = (0, 1, 2, (2, 0), "same", "valid")


def image(n, c, h, w, dtype=torch.float32, seed=0):
    return torch.randn(n, c, h, w, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@st.composite
def convolutions(draw):
    """(layer arguments, input shape, sparsity) of a convolution torch accepts."""
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.sampled_from(PADDINGS))
    stride = (1, 1) if padding == "same" else draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pads = {0: (0, 0), 1: (1, 1), 2: (2, 2), (2, 0): (2, 0), "valid": (0, 0), "same": (99, 99)}
    size = []
    for k, d, p in zip(kernel, dilation, pads[padding], strict=True):
        least = max(1, d * (k - 1) + 1 - 2 * p)
        size.append(draw(st.integers(least, least + 9)))
    n = draw(st.sampled_from((0, 1, 2, 3, 7, 8, 9, 17)))
    arguments = {
        "in_channels": groups * draw(st.integers(1, 5)),
        "out_channels": groups * draw(st.integers(1, 6)),
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    sparsity = draw(st.sampled_from((0.0, 0.5, 0.9, 0.99)))
    return arguments, (n, arguments["in_channels"], *size), sparsity
