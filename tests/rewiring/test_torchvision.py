"""Every method on a model of torchvision, where that is installed."""

import pytest
import torch
from torch.nn import functional as F

import dsr_kernels
from dsr_kernels.rewiring import METHODS

torchvision = pytest.importorskip("torchvision")

OPTIONS = {
    "dsr": {"prune_fraction": 0.1, "every": 2},
    "set": {"fraction": 0.2, "every": 2},
    "rigl": {"fraction": 0.3, "every": 2, "stop": 8},
    "snfs": {"fraction": 0.3, "every": 2, "stop": 8},
    "deepr": {"length": 8},
    "gmp": {"final_sparsity": 0.9, "end": 4, "every": 2},
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_torchvision_model_trains(name, method, optimizer):
    dense = getattr(torchvision.models, name)(num_classes=10)
    model = dsr_kernels.sparsify(dense, 0.5 if method == "gmp" else 0.9, preset="all")
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    rewirer = METHODS[method](model, optimizer, **OPTIONS.get(method, {}))
    nnz = rewirer.nnz
    for _ in range(4):
        images, labels = torch.randn(4, 3, 32, 32), torch.randint(0, 10, (4,))
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        rewirer.step()
    if method == "gmp":
        sizes = [module.numel for _, module in dsr_kernels.named_sparse_modules(model)]
        assert rewirer.nnz == sum(dsr_kernels.distribution.budget(size, 0.9) for size in sizes)
    else:
        assert rewirer.nnz == nnz
