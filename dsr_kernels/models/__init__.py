"""The networks of the paper (and ResNet-18), each with its sparse layers or, with
``sparse=False``, as its dense twin.
"""

from dsr_kernels.models.lenet import LeNet300100, lenet_300_100
from dsr_kernels.models.resnet import ResNet, resnet18, resnet50
from dsr_kernels.models.thin import thin_width
from dsr_kernels.models.wide_resnet import WideResNet, wrn_28

__all__ = [
    "LeNet300100",
    "ResNet",
    "WideResNet",
    "lenet_300_100",
    "resnet18",
    "resnet50",
    "thin_width",
    "wrn_28",
]
