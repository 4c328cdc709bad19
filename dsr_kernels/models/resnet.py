"""ResNet-18 and ResNet-50 for ImageNet-sized images, with the paper's choice of sparse and dense
tensors (the paper trains ResNet-50).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dsr_kernels.models.layers import LayerFactory, initialize_, scaled


class BasicBlock(nn.Module):
    """3x3 (it carries the stride), 3x3; BN after each; a dense 1x1 shortcut."""

    expansion = 1

    def __init__(self, layers: LayerFactory, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layers.conv(inputs, width, 3, stride)
        self.bn1 = layers.norm(width)
        self.conv2 = layers.conv(width, width, 3)
        self.bn2 = layers.norm(width)
        self.downsample = _downsample(layers, inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (it carries the stride), 1x1 to four times the width; BN after each; a dense 1x1
    shortcut.
    """

    expansion = 4

    def __init__(self, layers: LayerFactory, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = layers.conv(inputs, width, 1)
        self.bn1 = layers.norm(width)
        self.conv2 = layers.conv(width, width, 3, stride)
        self.bn2 = layers.norm(width)
        self.conv3 = layers.conv(width, outputs, 1)
        self.bn3 = layers.norm(outputs)
        self.downsample = _downsample(layers, inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def _downsample(
    layers: LayerFactory, inputs: int, outputs: int, stride: int
) -> nn.Sequential | None:
    """The dense shortcut of a block that changes the shape; None where it is the identity."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(layers.dense_conv(inputs, outputs, 1, stride), layers.norm(outputs))


class ResNet(nn.Module):
    """Four stages of blocks, 64, 128, 256 and 512 times `width` wide. Dense: the stem and the 1x1
    downsampling; the classifier is sparse.

    Input [B, in_channels, H, W] (224x224 in the paper), output [B, num_classes].
    """

    def __init__(
        self,
        layers: LayerFactory,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, int, int, int],
        width: float,
        in_channels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        inputs = scaled(64, width)
        self.stem = layers.dense_conv(in_channels, inputs, 7, 2)
        self.bn = layers.norm(inputs)
        for stage, depth in enumerate(depths, start=1):
            channels = scaled(32 * 2**stage, width)
            blocks = []
            for index in range(depth):
                stride = 2 if index == 0 and stage > 1 else 1
                blocks.append(block(layers, inputs, channels, stride))
                inputs = block.expansion * channels
            self.add_module(f"stage{stage}", nn.Sequential(*blocks))
        self.fc = layers.linear(inputs, num_classes, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def resnet18(
    sparsity: float = 0.9,
    *,
    width: float = 1.0,
    in_channels: int = 3,
    num_classes: int = 1000,
    sparse: bool = True,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    block_size: int = 1,
) -> ResNet:
    """ResNet-18 with ``floor((1 - sparsity) N)`` non-zeros in each sparse layer, or its dense twin.

    With 1000 classes: 11,497,472 positions in sparse tensors and 192,040 dense parameters.
    """
    layers = LayerFactory(sparse, sparsity, generator, device, dtype, block_size)
    model = ResNet(layers, BasicBlock, (2, 2, 2, 2), width, in_channels, num_classes)
    initialize_(model, generator)
    return model


def resnet50(
    sparsity: float = 0.9,
    *,
    width: float = 1.0,
    in_channels: int = 3,
    num_classes: int = 1000,
    sparse: bool = True,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    block_size: int = 1,
) -> ResNet:
    """ResNet-50 with ``floor((1 - sparsity) N)`` non-zeros in each sparse layer, or its dense twin.

    With 1000 classes: 22,724,608 positions in sparse tensors and 2,832,424 dense parameters.
    """
    layers = LayerFactory(sparse, sparsity, generator, device, dtype, block_size)
    model = ResNet(layers, Bottleneck, (3, 4, 6, 3), width, in_channels, num_classes)
    initialize_(model, generator)
    return model
