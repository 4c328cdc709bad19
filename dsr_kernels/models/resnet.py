"""ResNet-50 for ImageNet-sized images, with the paper's choice of sparse and dense tensors."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dsr_kernels.models._layers import LayerFactory, initialize_


class Bottleneck(nn.Module):
    """1x1, 3x3 (it carries the stride), 1x1 to four times the width; BN after each; a dense 1x1
    shortcut.
    """

    def __init__(self, layers: LayerFactory, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = layers.conv(inputs, width, 1)
        self.bn1 = layers.norm(width)
        self.conv2 = layers.conv(width, width, 3, stride)
        self.bn2 = layers.norm(width)
        self.conv3 = layers.conv(width, outputs, 1)
        self.bn3 = layers.norm(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                layers.dense_conv(inputs, outputs, 1, stride), layers.norm(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """Stages of 3, 4, 6 and 3 bottlenecks. Dense: the stem and the 1x1 downsampling; the classifier
    is sparse.

    Input [B, in_channels, H, W] (224x224 in the paper), output [B, num_classes].
    """

    def __init__(self, layers: LayerFactory, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = layers.dense_conv(in_channels, 64, 7, 2)
        self.bn = layers.norm(64)
        inputs = 64
        for stage, (depth, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
            blocks = []
            for block in range(depth):
                stride = 2 if block == 0 and stage > 1 else 1
                blocks.append(Bottleneck(layers, inputs, width, stride))
                inputs = 4 * width
            self.add_module(f"stage{stage}", nn.Sequential(*blocks))
        self.fc = layers.linear(inputs, num_classes, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def resnet50(
    sparsity: float = 0.9,
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    sparse: bool = True,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> ResNet50:
    """ResNet-50 with ``floor((1 - sparsity) N)`` non-zeros in each sparse layer, or its dense twin.

    With 1000 classes: 22,724,608 positions in sparse tensors and 2,832,424 dense parameters.
    """
    layers = LayerFactory(sparse, sparsity, generator, device, dtype)
    model = ResNet50(layers, in_channels, num_classes)
    initialize_(model, generator)
    return model
