"""An average that follows never mixes weights of different positions; one of indices is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import SET
from dsr_kernels.topology import Topology


class BufferAverage(nn.Module):
    """As timm's ModelEmaV2: an average of all that is in the state_dict, indices too."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.module, self.decay = copy.deepcopy(model), decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        states = zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)
        for average, value in states:
            average.copy_(self.decay * average + (1 - self.decay) * value)


class ParameterAverage(BufferAverage):
    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for average, value in zip(self.module.parameters(), model.parameters(), strict=True):
            average.lerp_(value, 1 - self.decay)


def torchs(use_buffers: bool):
    def make(model, decay):
        average = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=use_buffers
        )
        average.update = average.update_parameters
        return average

    return make


AVERAGES = {
    "AveragedModel": torchs(use_buffers=False),
    "AveragedModel over buffers": torchs(use_buffers=True),
    "ModelEmaV2": BufferAverage,
    "of parameters": ParameterAverage,
}


def make_layer(columns: int, weights: dict[int, float]) -> SparseLinear:
    layer = SparseLinear(columns, 1, bias=False, nnz=len(weights))
    pattern = Topology.from_positions((1, columns), torch.tensor(list(weights)))
    values = torch.tensor(list(weights.values()))
    layer.replace_topology(pattern.crow_indices, pattern.col_indices, values)
    return layer


class ToTheLast(SET):
    """Moves the smallest weight to the last column."""

    def _prune(self, plan, layers):
        plan.prune_smallest_each([1])
        return 0.0, 0.0

    def _grow(self, plan, layers):
        plan.grow([1])
        return [torch.tensor([plan.capacity[0] - 1])]


def start(average: str, decay: float, layer: SparseLinear):
    model = nn.Sequential(layer)
    ema = AVERAGES[average](model, decay)
    rewirer = ToTheLast(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1)
    rewirer.follow(ema)
    ema.update(model)
    return model, ema, rewirer


@pytest.mark.parametrize("average", AVERAGES)
def test_what_has_grown_is_averaged_from_0(average):
    model, ema, rewirer = start(average, 0.5, make_layer(4, {0: 4.0, 1: 8.0}))
    rewirer.rewire()
    ema.update(model)
    assert ema.module[0].to_dense().tolist() == [[0.0, 8.0, 0.0, 0.0]]
    assert ema.module[0].col_indices.tolist() == model[0].col_indices.tolist() == [1, 3]
    with torch.no_grad():
        model[0].weight_values[1] = 2.0
    ema.update(model)
    assert ema.module[0].to_dense().tolist() == [[0.0, 8.0, 0.0, 1.0]]


@pytest.mark.parametrize("average", ["AveragedModel", "AveragedModel over buffers", "ModelEmaV2"])
def test_an_average_that_does_not_follow_says_so_before_any_number_comes_out(average):
    """All of these write the model's indices, or the mean of both, into the average's."""
    model = nn.Sequential(make_layer(4, {0: 4.0, 1: 8.0}))
    ema = AVERAGES[average](model, 0.5)
    ema.update(model)
    ToTheLast(model, torch.optim.SGD(model.parameters(), lr=0.1)).rewire()
    ema.update(model)
    for call in (
        lambda: ema.module(torch.ones(1, 4)),
        ema.state_dict,
        ema.module[0].to_dense,
        lambda: copy.deepcopy(ema),
    ):
        with pytest.raises(RuntimeError, match=r"has to follow it: Rewirer\.follow"):
            call()


def freely(copied: nn.Module, model: nn.Module) -> None:
    """As MoCo's and BYOL's: `.data` counts no version, and this is new memory each time."""
    for average, value in zip(copied.parameters(), model.parameters(), strict=True):
        average.data = average.data * 0.5 + value.data * 0.5


def in_place(copied: nn.Module, model: nn.Module) -> None:
    for average, value in zip(copied.parameters(), model.parameters(), strict=True):
        average.data.mul_(0.5).add_(value.data, alpha=0.5)


def frozen_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).requires_grad_(False)


@pytest.mark.parametrize("update", [freely, in_place])
def test_a_frozen_copy_that_is_averaged_without_following_is_refused(update):
    model = nn.Sequential(make_layer(4, {0: 4.0, 1: 8.0}))
    average, snapshot = frozen_copy(model), frozen_copy(model)
    update(average, model)
    ToTheLast(model, torch.optim.SGD(model.parameters(), lr=0.1)).rewire()
    assert average(torch.ones(1, 4)).item() == 12  # a snapshot, so far
    update(average, model)
    for call in (
        lambda: average(torch.ones(1, 4)),
        average.state_dict,
        average[0].to_dense,
        lambda: copy.deepcopy(average),
        lambda: average.double(),
    ):
        with pytest.raises(RuntimeError, match=r"layer '0': .*Rewirer\.follow"):
            call()
    average.load_state_dict(model.state_dict())
    assert average(torch.ones(1, 4)).item() == model(torch.ones(1, 4)).item() == 8
    update(average, model)
    assert average(torch.ones(1, 4)).item() == 8
    assert snapshot(torch.ones(1, 4)).item() == 12 and copy.deepcopy(snapshot)[0].nnz == 2


@pytest.mark.parametrize("update", [freely, in_place])
def test_a_frozen_copy_that_follows_is_averaged(update):
    model = nn.Sequential(make_layer(4, {0: 4.0, 1: 8.0}))
    average = frozen_copy(model)
    rewirer = ToTheLast(model, torch.optim.SGD(model.parameters(), lr=0.1))
    rewirer.follow(average)
    rewirer.rewire()
    update(average, model)
    assert average[0].to_dense().tolist() == [[0.0, 8.0, 0.0, 0.0]]


def loaded_copy(model: nn.Module) -> nn.Module:
    """As MoCo makes its key encoder."""
    made = nn.Sequential(SparseLinear(4, 1, bias=False, nnz=2))
    made.load_state_dict(model.state_dict())
    return made.requires_grad_(False)


def compiled(average: nn.Module):
    return torch.compile(average, backend="eager")


def traced(average: nn.Module):
    return torch.jit.trace(average, torch.ones(1, 4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [frozen_copy, loaded_copy])
@pytest.mark.parametrize("use", [lambda average: average, compiled, traced, copy.deepcopy])
def test_a_frozen_copy_left_behind_is_refused_however_it_is_used(make, use):
    model = nn.Sequential(make_layer(4, {0: 4.0, 1: 8.0}))
    average = make(model)
    call = use(average)
    assert call(torch.ones(1, 4)).item() == 12
    ToTheLast(model, torch.optim.SGD(model.parameters(), lr=0.1)).rewire()
    call = use(average) if use is copy.deepcopy else call
    assert call(torch.ones(1, 4)).item() == 12
    freely(call if use is copy.deepcopy else average, model)
    with pytest.raises(RuntimeError, match="its values were changed"):
        call(torch.ones(1, 4))


def test_a_snapshot_may_change_its_dtype_and_train_again():
    model = nn.Sequential(make_layer(4, {0: 4.0, 1: float("nan")}))
    snapshot = frozen_copy(model)
    with torch.no_grad():
        model[0].weight_values[1] = 8.0
    ToTheLast(model, torch.optim.SGD(model.parameters(), lr=0.1)).rewire()
    assert snapshot.double()(torch.ones(1, 4).double()).isnan()
    snapshot.requires_grad_(True)
    snapshot.float()(torch.ones(1, 4)).sum().backward()
    with torch.no_grad():
        snapshot[0].weight_values.fill_(1.0)
    assert snapshot.requires_grad_(False)(torch.ones(1, 4)).item() == 2


def test_an_average_that_was_mixed_stays_refused_when_the_rewire_is_taken_back():
    model = nn.Sequential(make_layer(4, {0: 4.0, 1: 8.0}))
    average, layer = frozen_copy(model), model[0]
    before = layer.pattern(), layer.weight_values.detach().clone()
    ToTheLast(model, torch.optim.SGD(model.parameters(), lr=0.1)).rewire()
    in_place(average, model)
    layer.replace_topology(before[0].crow_indices, before[0].col_indices, before[1])
    with pytest.raises(RuntimeError, match="its values were changed"):
        average(torch.ones(1, 4))


def test_copies_that_train_by_themselves_and_unpickled_ones_are_free():
    model = nn.Sequential(make_layer(4, {0: 4.0, 1: 8.0}))
    fork, other = copy.deepcopy(model), pickle.loads(pickle.dumps(model)).requires_grad_(False)
    ToTheLast(model, torch.optim.SGD(model.parameters(), lr=0.1)).rewire()
    for copied in (fork, other):
        in_place(copied, copy.deepcopy(copied))
        assert copied(torch.ones(1, 4)).item() == 12


def test_a_rewire_that_is_taken_back_leaves_no_copy_behind():
    model = nn.Sequential(make_layer(4, {0: 4.0, 1: 8.0}))
    average, layer = frozen_copy(model), model[0]
    before = layer.pattern(), layer.weight_values.detach().clone()
    ToTheLast(model, torch.optim.SGD(model.parameters(), lr=0.1)).rewire()
    layer.replace_topology(before[0].crow_indices, before[0].col_indices, before[1])
    in_place(average, model)
    assert average(torch.ones(1, 4)).item() == 12


@pytest.mark.parametrize("average", ["AveragedModel over buffers", "ModelEmaV2"])
def test_an_average_whose_indices_were_rounded_is_refused_and_nothing_changes(average):
    model, ema, rewirer = start(average, 0.9999, make_layer(16, {0: 4.0, 11: 8.0}))
    if ema.module[0].col_indices.tolist() == [0, 11]:  # torch's copies the first time
        ema.update(model)
    assert ema.module[0].col_indices.tolist() == [0, 10]
    message = r"layer '0' and '[a-z.]*0 of \w+': expected the same .*rounded \(AveragedModel\("
    for call in (rewirer.rewire, rewirer.step):
        with pytest.raises(ValueError, match=message):
            call()
    assert model[0].col_indices.tolist() == [0, 11] and rewirer.rewires == rewirer.iteration == 0


@pytest.mark.parametrize("average", ["AveragedModel", "of parameters"])
def test_an_average_of_parameters_keeps_its_indices(average):
    model, ema, rewirer = start(average, 0.9999, make_layer(16, {0: 4.0, 11: 8.0}))
    for _ in range(3):
        ema.update(model)
        rewirer.step()
    assert ema.module[0].col_indices.tolist() == model[0].col_indices.tolist() != [0, 11]


@pytest.mark.parametrize("shared", ["model", "average"])
def test_what_other_processes_may_hold_is_not_rewired(shared):
    """They would go on with the memory of before."""
    model, ema, rewirer = start("of parameters", 0.5, make_layer(4, {0: 4.0, 1: 8.0}))
    (model if shared == "model" else ema).share_memory()
    name = "0" if shared == "model" else "module.0 of ParameterAverage"
    with pytest.raises(ValueError, match=f"layer '{name}': its tensors are in shared memory"):
        rewirer.rewire()
    assert model[0].col_indices.tolist() == [0, 1]
    if shared == "model":
        alone = copy.deepcopy(model)  # as the message says
        ToTheLast(alone, torch.optim.SGD(alone.parameters(), lr=0.1)).rewire()
        assert alone[0].col_indices.tolist() == [1, 3]
