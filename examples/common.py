"""CIFAR-10 and a dense ResNet-20, which the short examples share."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def cifar10(folder: str) -> tuple[TensorDataset, TensorDataset]:
    """Training and test images of the folder cifar-10-batches-py, float32 [n, 3, 32, 32]."""

    def read(names: list[str]) -> TensorDataset:
        batches = [
            pickle.loads((Path(folder) / name).read_bytes(), encoding="bytes") for name in names
        ]
        pixels = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([batch[b"labels"] for batch in batches])
        images = (torch.from_numpy(pixels).float() / 255 - 0.4734) / 0.2516
        return TensorDataset(images, torch.from_numpy(labels).long())

    return read([f"data_batch_{i}" for i in range(1, 6)]), read(["test_batch"])


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        short = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.short = nn.Sequential(*short) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.short(x)).relu()


def resnet20(width: int = 16, classes: int = 10) -> nn.Sequential:
    """A dense ResNet-20 for images of 32x32, with `width` channels in its first stage."""
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(3, width, 3, padding=1, bias=False))
    model.add_module("bn1", nn.BatchNorm2d(width))
    inputs = width
    for stage in range(3):
        outputs = width * 2**stage
        for place in range(3):
            stride = 2 if stage and not place else 1
            model.add_module(f"block{stage}_{place}", Block(inputs, outputs, stride))
            inputs = outputs
    model.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    model.add_module("head", nn.Linear(inputs, classes))
    return model
