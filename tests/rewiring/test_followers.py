"""An average follows its model's rewires, whatever either is wrapped in, or is refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.wrapped_models import WRAPPERS, Holder, plain, sgd
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from dsr_kernels.distributed import DistributedDataParallel
from dsr_kernels.nn import SparseLinear, named_sparse_modules
from dsr_kernels.rewiring import DSR, SET

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.mark.parametrize("average", WRAPPERS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_average_follows_a_wrapped_model(wrapper, average):
    wrapped, other = WRAPPERS[wrapper](plain()), WRAPPERS[average](plain())
    with torch.no_grad():
        for i, parameter in enumerate(other.parameters()):
            parameter += i + 1  # no longer the model's
    layers, copies = ([m for _, m in named_sparse_modules(m)] for m in (wrapped, other))
    before = [_entries(layer) for layer in copies]
    rewirer = SET(wrapped, sgd(wrapped), fraction=0.4, every=1)
    rewirer.follow(other)
    rewirer.rewire()
    for old, layer, twin in zip(before, layers, copies, strict=True):
        now = _entries(twin)
        assert now.keys() == _entries(layer).keys() != old.keys()
        assert all(now[p] == old.get(p, 0.0) for p in now)


def _entries(module) -> dict[int, float]:
    positions = module.topology.linear_positions().tolist()
    return dict(zip(positions, module.weight_values.detach().flatten().tolist(), strict=True))


def test_a_wrapper_of_a_model_and_its_average_are_both_followed():
    """AveragedModel(DDP(model)), with the rewirer on any of the model's wrappers."""
    model = plain()
    wrapped = DistributedDataParallel(model)
    for rewired in (model, wrapped, torch.compile(model), Holder(wrapped)):
        rewirer = DSR(rewired, sgd(model))
        rewirer.follow(AveragedModel(wrapped))
        rewirer.follow(AveragedModel(AveragedModel(Holder(model))))
        assert [len(layer.followers) for layer in rewirer._layers] == [2, 2]


def test_an_average_beside_its_model_in_one_module_follows():
    holder = Holder(plain())
    holder.average = AveragedModel(holder.model).requires_grad_(False)
    rewirer = DSR(holder, sgd(holder.model), threshold="exact", prune_fraction=0.4)
    rewirer.follow(holder.average)
    rewirer.rewire()
    fc = holder.model.fc, holder.average.module.fc
    assert _entries(fc[0]).keys() == _entries(fc[1]).keys()
    rewirer.rewire()


# ---- what is refused ----------------------------------------------------------------------------


def shared_parameter():
    model = plain()
    twin = copy.deepcopy(model)
    twin.fc.weight_values = model.fc.weight_values
    return model, twin


def shared_memory():
    model = plain()
    twin = copy.deepcopy(model)
    twin.fc.weight_values = nn.Parameter(model.fc.weight_values.detach())
    return model, twin


def shared_module():
    model = plain()
    twin = copy.deepcopy(model)
    twin.fc = model.fc
    return model, twin


def missing():
    model = plain()
    twin = copy.deepcopy(model)
    twin.fc = nn.Linear(16, 3)
    return model, twin


def extra():
    model = plain()
    twin = copy.deepcopy(model)
    twin.head = SparseLinear(3, 3)
    return model, twin


def other_shape():
    model = plain()
    twin = copy.deepcopy(model)
    twin.fc = SparseLinear(8, 6, nnz=12)
    return model, twin


def untied():
    model = plain()
    model.twin = SparseLinear(16, 3, nnz=12)
    model.twin.load_state_dict(model.fc.state_dict())
    twin = copy.deepcopy(model)
    model.twin.weight_values = model.fc.weight_values
    return model, twin


def parametrized():
    model = plain()
    twin = copy.deepcopy(model)
    parametrize.register_parametrization(twin.fc, "weight_values", nn.Identity())
    return model, twin


def trained_beside():
    holder = Holder(plain())
    holder.average = AveragedModel(holder.model)
    return holder, holder.average


BAD = {
    "itself": (lambda: [plain()] * 2, "expected a copy of the model, got the model itself"),
    "itself, wrapped": (
        lambda: (model := plain(), torch.compile(model)),
        "expected a copy of the model, got the model itself",
    ),
    "a parameter of the model": (
        shared_parameter,
        "layer 'fc' of WithModule shares its values with layer 'fc' of the model",
    ),
    "memory of the model": (
        shared_memory,
        "layer 'fc' of WithModule shares its values with layer 'fc' of the model",
    ),
    "a layer of the model": (
        shared_module,
        "layer 'fc' of WithModule is the layer 'fc' of this rewirer, expected a copy",
    ),
    "missing": (missing, "WithModule has no sparse module 'fc'"),
    "extra": (extra, "WithModule has a sparse module 'head' that the model has not"),
    "other shape": (other_shape, r"'fc' and 'fc of WithModule': expected the same pattern"),
    "untied": (untied, r"layer 'fc': the modules \['fc', 'twin'\] share one Parameter, .*'fc'\]"),
    "parametrized": (parametrized, "weight_values of layer 'fc' of WithModule is not a parameter"),
    "trained, too": (
        trained_beside,
        "layer 'module.0' of AveragedModel is the layer 'average.module.0' of this rewirer",
    ),
    "without sparse layers": (lambda: (plain(), nn.Linear(2, 2)), "Linear has none"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_copy_is_refused_by_name_and_nothing_changes(case):
    make, message = BAD[case]
    model, other = make()
    rewirer = DSR(model, sgd(model))
    with pytest.raises(ValueError, match=message):
        rewirer.follow(other)
    assert not any(layer.followers for layer in rewirer._layers)
    rewirer.rewire()


def test_a_copy_follows_once():
    model = plain()
    rewirer, average = DSR(model, sgd(model)), AveragedModel(model)
    rewirer.follow(average)
    with pytest.raises(ValueError, match=r"layer 'module.0' of WithModule follows already"):
        rewirer.follow(average.module)
    assert [len(layer.followers) for layer in rewirer._layers] == [1, 1]


def test_a_copy_with_its_layers_in_another_order_follows_by_name():
    model = nn.Sequential(SparseLinear(5, 5, nnz=9), SparseLinear(5, 5, nnz=9))
    twin = nn.Module()
    for name in ("1", "0"):
        twin.add_module(name, copy.deepcopy(model[int(name)]))
    rewirer = SET(model, sgd(model), every=1)
    rewirer.follow(twin)
    rewirer.rewire()
    for name in ("0", "1"):
        assert torch.equal(model[int(name)].col_indices, getattr(twin, name).col_indices)
