"""LeNet-300-100: three fully connected layers, each followed by batch normalisation."""

from __future__ import annotations

import torch
from torch import nn

from dsr_kernels.models.layers import LayerFactory, initialize_, scaled


class LeNet300100(nn.Module):
    """784 -> 300 -> 100 -> 10 without biases; BN after every layer, the output included (the
    paper's choice).

    All three layers are sparse; `width` multiplies 300 and 100. Input: [B, ...] with
    ``in_features`` numbers an image; output: [B, num_classes].
    """

    def __init__(
        self, layers: LayerFactory, in_features: int, num_classes: int, width: float = 1.0
    ) -> None:
        super().__init__()
        first, second = scaled(300, width), scaled(100, width)
        self.fc1 = layers.linear(in_features, first, bias=False)
        self.bn1 = layers.norm1d(first)
        self.fc2 = layers.linear(first, second, bias=False)
        self.bn2 = layers.norm1d(second)
        self.fc3 = layers.linear(second, num_classes, bias=False)
        self.bn3 = layers.norm1d(num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        x = torch.relu(self.bn1(self.fc1(x)))
        x = torch.relu(self.bn2(self.fc2(x)))
        return self.bn3(self.fc3(x))


def lenet_300_100(
    sparsity: float = 0.9,
    *,
    width: float = 1.0,
    in_features: int = 784,
    num_classes: int = 10,
    sparse: bool = True,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    block_size: int = 1,
) -> LeNet300100:
    """LeNet-300-100 with ``floor((1 - sparsity) N)`` non-zeros in each layer, or its dense twin.

    At the usual sizes: 266,200 positions in sparse tensors and 820 dense parameters (BN).
    """
    layers = LayerFactory(sparse, sparsity, generator, device, dtype, block_size)
    model = LeNet300100(layers, in_features, num_classes, width)
    initialize_(model, generator)
    return model
