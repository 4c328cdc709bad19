"""WRN-28-k: the pre-activation wide residual network for small images."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dsr_kernels.models.layers import LayerFactory, initialize_, scaled


class WideBlock(nn.Module):
    """BN, ReLU, 3x3, BN, ReLU, 3x3, plus the shortcut; where the width changes, a dense 1x1 after
    BN and ReLU.
    """

    def __init__(self, layers: LayerFactory, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = layers.norm(inputs)
        self.conv1 = layers.conv(inputs, outputs, 3, stride)
        self.bn2 = layers.norm(outputs)
        self.conv2 = layers.conv(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else layers.dense_conv(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = F.relu(self.bn1(x))
        y = self.conv1(activated)
        y = self.conv2(F.relu(self.bn2(y)))
        return y + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """Three groups of four blocks, 16k, 32k and 64k wide, for images of about 32x32.

    Sparse: the 3x3 convolutions of the blocks. Dense: the stem, the 1x1 shortcuts and the
    classifier. Input [B, in_channels, H, W], output [B, num_classes].
    """

    def __init__(
        self, layers: LayerFactory, width: float, in_channels: int, num_classes: int
    ) -> None:
        super().__init__()
        self.stem = layers.dense_conv(in_channels, 16, 3)
        inputs = 16
        for group, (base, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
            outputs = scaled(base, width)
            blocks = [WideBlock(layers, inputs, outputs, stride)]
            blocks += [WideBlock(layers, outputs, outputs, 1) for _ in range(3)]
            self.add_module(f"group{group}", nn.Sequential(*blocks))
            inputs = outputs
        self.bn = layers.norm(inputs)
        self.fc = layers.dense_linear(inputs, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.group3(self.group2(self.group1(self.stem(x))))
        x = F.relu(self.bn(x))
        return self.fc(x.mean(dim=(2, 3)))


def wrn_28(
    width: float = 2,
    sparsity: float = 0.9,
    *,
    in_channels: int = 3,
    num_classes: int = 10,
    sparse: bool = True,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    block_size: int = 1,
) -> WideResNet:
    """WRN-28-width with ``floor((1 - sparsity) N)`` non-zeros in each sparse layer, or its dense
    twin.

    WRN-28-2 on RGB images: 1,451,520 positions in sparse tensors and 16,090 dense parameters. A
    fractional width rounds each group's channels to the nearest integer (the paper's thin dense
    baselines).
    """
    layers = LayerFactory(sparse, sparsity, generator, device, dtype, block_size)
    model = WideResNet(layers, width, in_channels, num_classes)
    initialize_(model, generator)
    return model
