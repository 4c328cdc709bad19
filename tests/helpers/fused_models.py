"""Models that fuse is tried on, written as users and torchvision write them; and comparing two."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsr_kernels
from dsr_kernels.nn import functional


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


class BasicBlock(nn.Module):
    """As torchvision's ResNet: ReLU and the addition in place, one ReLU called twice."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.layer2 = nn.Sequential(BasicBlock(8, 12, 2), BasicBlock(12, 12))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(12, 5)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_impl(x)


class DenseLayer(nn.Module):
    """As torchvision's DenseNet: asks whether it was given a tensor or a list of them."""

    def __init__(self, inputs: int, growth: int, drop_rate: float) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(2 * growth), nn.ReLU(inplace=True)
        self.conv2 = conv3x3(2 * growth, growth)
        self.drop_rate = drop_rate

    def bn_function(self, inputs: list[Tensor]) -> Tensor:
        return self.conv1(self.relu1(self.norm1(torch.cat(inputs, 1))))

    def forward(self, input: Tensor | list[Tensor]) -> Tensor:
        prev_features = [input] if isinstance(input, Tensor) else input
        new = self.conv2(self.relu2(self.norm2(self.bn_function(prev_features))))
        if self.drop_rate > 0:
            new = F.dropout(new, p=self.drop_rate, training=self.training)
        return new


class DenseBlock(nn.ModuleDict):
    def __init__(self, layers: int, inputs: int, growth: int, drop_rate: float) -> None:
        super().__init__()
        for i in range(layers):
            layer = DenseLayer(inputs + i * growth, growth, drop_rate)
            self.add_module(f"denselayer{i + 1}", layer)

    def forward(self, init_features: Tensor) -> Tensor:
        features = [init_features]
        for _, layer in self.items():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self, drop_rate: float = 0.0) -> None:
        super().__init__()
        transition = nn.Sequential(
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 8, 1, bias=False),
            nn.AvgPool2d(2),
        )
        parts = [("conv0", conv3x3(3, 8)), ("denseblock1", DenseBlock(2, 8, 4, drop_rate))]
        parts += [("transition1", transition), ("denseblock2", DenseBlock(2, 8, 4, drop_rate))]
        self.features = nn.Sequential(OrderedDict([*parts, ("norm5", nn.BatchNorm2d(16))]))
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(out, (1, 1)), 1))


class InvertedResidual(nn.Module):
    """As torchvision's MobileNetV2: ReLU6, depthwise convolutions, a sum without ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        wide = 2 * inputs
        self.use_res_connect = inputs == outputs
        self.conv = nn.Sequential(
            nn.Sequential(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            nn.Sequential(
                nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU6(inplace=True),
            ),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


def mobile_net() -> nn.Module:
    blocks = [InvertedResidual(8, 8), InvertedResidual(8, 12), InvertedResidual(12, 12)]
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.0), nn.Linear(12, 5)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(), *blocks, *ends)


def vgg() -> nn.Module:
    """Convolution with a bias, BN, ReLU; then convolutions without BN."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 8), (8, 12)):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    layers += [nn.MaxPool2d(2), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, bias=False)]
    return nn.Sequential(*layers, nn.Identity(), nn.BatchNorm2d(12), nn.Flatten(), nn.LazyLinear(5))


class Base(nn.Module):
    """Layers whose forward a test writes; `chain` is most of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def chain(self, x):
        return self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))


class Branches(nn.Module):
    """A BN that two convolutions share, one whose result is used elsewhere too, all ways to add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv3x3(3, 8)
        self.bn = nn.BatchNorm2d(8)
        self.left, self.right = conv3x3(8, 8), conv3x3(8, 8)
        self.bn_left, self.bn_right = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.again, self.last = conv3x3(8, 8), conv3x3(8, 8)
        self.bn_again, self.bn_twice = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        shared = self.bn(x).relu()
        left, right = self.left(shared), self.right(shared)
        both = torch.add(self.bn_left(left), self.bn_right(right))
        used = torch.relu(self.bn_again(both))
        y = self.again(used).add_(used)
        z = self.bn_twice(y) + self.bn_twice(x + self.last(y))
        return {"z": z, "plain": both + shared.mean((2, 3), keepdim=True)}


MODELS = {
    "resnet": ResNet,
    "densenet": DenseNet,
    "mobilenet": mobile_net,
    "vgg": vgg,
    "branches": Branches,
}


def sparse_pair(
    model: nn.Module,
    dtype: torch.dtype = torch.float64,
    sparsity: float = 0.6,
    block_size: int = 1,
) -> tuple[nn.Module, nn.Module]:
    """(fused, plain): two copies of a sparse model whose batch norms are not fresh."""
    model = model.to(dtype)
    if any(isinstance(m, nn.LazyLinear) for m in model.modules()):
        model(images(dtype))
    torch.manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (norm.weight, -1, 2),
                (norm.bias, -1, 1),
                (norm.running_mean, -1, 1),
                (norm.running_var, 0.5, 2),
            ):
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
    plain = dsr_kernels.sparsify(model, sparsity, inplace=True, block_size=block_size, preset="all")
    fused = copy.deepcopy(plain)
    dsr_kernels.fuse(fused, verbose=False)
    return fused, plain


def images(dtype: torch.dtype = torch.float64, count: int = 4, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2)).to(dtype)


def tensors(output: Tensor | dict[str, Tensor]) -> list[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs, all gradients, and buffers after a forward and backward pass."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    model.zero_grad()
    outputs = tensors(model(x))
    sum(
        y.float().square().sum() if y.dtype == torch.bfloat16 else y.square().sum() for y in outputs
    ).backward()
    found = {f"output {i}": y.detach() for i, y in enumerate(outputs)} | {"x": x.grad}
    found |= {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found | {n: b.clone() for n, b in model.named_buffers()}


def check_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    """Raises AssertionError where two steps differ by more than that of the largest number.

    Some gradients are 0 but for rounding: those of biases before batch norm.
    """
    assert list(one) == list(other)
    floor = 1e-3 * max(b.abs().max().item() for b in other.values() if b.is_floating_point())
    for name, a in one.items():
        b = other[name]
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        if not a.is_floating_point():
            assert torch.equal(a, b), name
            continue
        scale = max(b.abs().max().item(), floor)
        assert (a - b).abs().max().item() <= tolerance * scale, name


class Counts(Counter):
    """How often the operations run, counted while it is installed."""

    NAMES = ("sparse_conv2d", "sparse_conv2d_fused", "sparse_conv2d_folded")

    def install(self, monkeypatch) -> Counts:
        for module, names in ((functional, self.NAMES), (F, ("batch_norm", "conv2d"))):
            for name in names:
                monkeypatch.setattr(module, name, self._counting(name, getattr(module, name)))
        return self

    def _counting(self, name, function):
        def call(*args, **kwargs):
            self[name] += 1
            return function(*args, **kwargs)

        return call
