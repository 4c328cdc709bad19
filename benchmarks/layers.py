"""The layers that the benchmarks measure, by family."""

from __future__ import annotations

from dsr_kernels.bench.problem import Layer

SPARSITIES = (0.8, 0.9, 0.95, 0.98)
BREAK_EVEN = (0.3, 0.4, 0.5, 0.6, 0.7)  # where dense may be faster; for the first family


def _conv(inputs: int, outputs: int, size: int, kernel: int, batch: int, stride: int = 1) -> Layer:
    sides = (kernel // 2, kernel // 2)
    return Layer(outputs, inputs, (kernel, kernel), (size, size), stride, sides, batch)


FAMILIES = {
    "WRN 3x3": [
        _conv(32, 32, 32, 3, 128),
        _conv(64, 64, 16, 3, 128),
        _conv(128, 128, 8, 3, 128),
    ],
    "WRN 3x3 stride 2": [_conv(32, 64, 32, 3, 128, 2), _conv(64, 128, 16, 3, 128, 2)],
    "ResNet-50 3x3": [
        _conv(64, 64, 56, 3, 16),
        _conv(128, 128, 28, 3, 16),
        _conv(256, 256, 14, 3, 32),
        _conv(512, 512, 7, 3, 64),
    ],
    "ResNet-50 1x1": [
        _conv(256, 64, 56, 1, 16),
        _conv(64, 256, 56, 1, 16),
        _conv(512, 128, 28, 1, 16),
        _conv(1024, 256, 14, 1, 32),
        _conv(512, 2048, 7, 1, 64),
    ],
    "linear": [Layer(1024, 1024, batch=512)],
}
