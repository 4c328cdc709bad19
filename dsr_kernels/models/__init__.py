"""The networks of the paper, each with its sparse layers or, with ``sparse=False``, as its dense
twin.
"""

from dsr_kernels.models.lenet import LeNet300100, lenet_300_100
from dsr_kernels.models.resnet import ResNet50, resnet50
from dsr_kernels.models.wide_resnet import WideResNet, wrn_28

__all__ = ["LeNet300100", "ResNet50", "WideResNet", "lenet_300_100", "resnet50", "wrn_28"]
