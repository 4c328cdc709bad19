"""DSR and Static as a user meets them: arguments, schedule, threshold, reports."""

import math

import pytest
import torch
from torch import nn

from dsr_kernels.nn import SparseConv2d, SparseLinear, named_sparse_modules
from dsr_kernels.rewiring import DSR, Static
from dsr_kernels.rewiring.schedule import Schedule


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return nn.Sequential(
        SparseConv2d(3, 16, 3, sparsity=0.5, generator=generator, dtype=dtype),
        nn.ReLU(),
        nn.Flatten(),
        SparseLinear(16 * 16, 20, sparsity=0.9, generator=generator, dtype=dtype),
        nn.Linear(20, 5, dtype=dtype),
    )


def make_dsr(model: nn.Module | None = None, **arguments) -> DSR:
    model = make_model() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return DSR(model, optimizer, **arguments)


def total_nnz(model: nn.Module) -> int:
    return sum(module.nnz for _, module in named_sparse_modules(model))


def below(model: nn.Module, threshold: float) -> int:
    modules = [m for _, m in named_sparse_modules(model)]
    return sum(int((m.weight_values.double().abs() < threshold).sum()) for m in modules)


# ---- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prune_fraction": 0.0}, r"prune_fraction: expected a number in \(0, 1\), got 0.0"),
        ({"prune_fraction": 1.0}, r"prune_fraction: expected a number in \(0, 1\), got 1.0"),
        ({"prune_fraction": math.nan}, "prune_fraction"),
        ({"prune_count": 0}, "prune_count: expected an integer of at least 1, got 0"),
        ({"prune_count": 2.5}, "prune_count: expected an integer"),
        ({"prune_count": 10**6}, "prune_count: expected at most the model's 728 non-zeros"),
        ({"prune_fraction": 0.1, "prune_count": 5}, "at most one of them, got 0.1 and 5"),
        ({"threshold": "topk"}, "threshold: unknown value 'topk'; expected one of adaptive, exact"),
        ({"initial_threshold": 0.0}, "initial_threshold: expected a finite number > 0"),
        ({"tolerance": 1.0}, r"tolerance: expected a number in \[0, 1\), got 1.0"),
        ({"every": 0}, "every: expected an integer of at least 1, got 0"),
        ({"every": 5, "schedule": [(0, 5)]}, "every, schedule: expected at most one"),
        ({"schedule": []}, "schedule: expected pairs"),
        ({"schedule": [5, 6]}, "schedule: expected pairs"),
        ({"schedule": [(10, 5), (10, 6)]}, r"rising start iterations, got \[10, 10\]"),
        ({"schedule": [(10, 5), (3, 6)]}, r"rising start iterations, got \[10, 3\]"),
        ({"schedule": [(-1, 5)]}, "schedule: start_iteration"),
        ({"schedule": [(0, 0)]}, "schedule: every"),
        ({"stop": -1}, "stop: expected an integer of at least 0, got -1"),
        ({"seed": -1}, "seed: expected an integer of at least 0"),
        ({"seed": 2**64}, r"seed: expected less than 2\*\*64"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_dsr(**arguments)


def test_targets():
    assert make_dsr().prune_count == 73  # a tenth of 728
    assert make_dsr(prune_fraction=0.25).prune_count == 182
    assert make_dsr(prune_count=5).prune_count == 5
    assert make_dsr(prune_fraction=1e-9).prune_count == 1


def test_a_model_without_sparse_modules_is_refused():
    with pytest.raises(ValueError, match="expected at least one sparse module, Linear has none"):
        make_dsr(nn.Linear(3, 3))


def test_an_optimizer_that_misses_a_sparse_layer_is_refused():
    model = make_model()
    dense_only = torch.optim.SGD(model[4].parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer: expected it to hold the values of layer '0'"):
        DSR(model, dense_only)
    with pytest.raises(TypeError, match=r"expected a torch.optim.Optimizer, got list"):
        DSR(model, list(model.parameters()))
    with pytest.raises(ValueError, match="got None"):
        DSR(model, None)


# ---- schedule -----------------------------------------------------------------------------------


def due(schedule: Schedule, iterations: int) -> list[int]:
    return [i for i in range(1, iterations + 1) if schedule.due(i)]


def test_schedule():
    assert due(Schedule.make(None, None, None), 300) == [100, 200, 300]
    assert due(Schedule.make(4, None, 9), 20) == [4, 8]
    assert due(Schedule.make(4, None, 8), 20) == [4, 8]
    assert due(Schedule.make(1, None, 0), 5) == []
    assert due(Schedule.make(None, [(0, 2), (6, 4)], None), 16) == [2, 4, 6, 8, 12, 16]
    assert due(Schedule.make(None, [(5, 3)], None), 14) == [6, 9, 12]


def test_step_counts_and_rewires_when_due():
    rewirer = make_dsr(every=3, stop=6)
    reports = [rewirer.step() for _ in range(12)]
    assert [i + 1 for i, report in enumerate(reports) if report] == [3, 6]
    assert [report.step for report in reports if report] == [3, 6]
    assert rewirer.iteration == 12 and rewirer.rewires == 2


# ---- threshold ----------------------------------------------------------------------------------


def test_adaptive_prunes_strictly_below_h_and_adapts_it_afterwards():
    model = make_model()
    rewirer = make_dsr(model, prune_count=60, initial_threshold=1e-3)
    for _ in range(12):
        threshold, expected = rewirer.threshold, below(model, rewirer.threshold)
        report = rewirer.rewire()
        assert report.threshold == threshold
        assert report.pruned == report.grown == expected
        factor = 2 if expected < 0.9 * 60 else 0.5 if expected > 1.1 * 60 else 1
        assert report.next_threshold == rewirer.threshold == factor * threshold
        for _, module in named_sparse_modules(model):
            module.weight_values.data.normal_(std=0.05, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("count", "factor"), [(53, 2), (54, 1), (66, 1), (67, 0.5)])
def test_the_tolerance_is_strict_on_both_sides(count, factor):
    model = make_model()
    for _, module in named_sparse_modules(model):
        module.weight_values.data.fill_(1.0)
    model[0].weight_values.data[:count] = 0.01
    rewirer = make_dsr(model, prune_count=60, initial_threshold=0.1)
    assert rewirer.rewire().next_threshold == factor * 0.1


def test_a_weight_of_exactly_h_stays():
    model = nn.Sequential(SparseLinear(10, 10, nnz=20))
    model[0].weight_values.data.fill_(0.5)
    model[0].weight_values.data[:4] = 0.25
    report = make_dsr(model, prune_count=5, initial_threshold=0.25).rewire()
    assert report.pruned == 0 and report.next_threshold == 0.5


def test_h_stays_within_reach_when_the_target_is_out_of_reach():
    model = nn.Sequential(SparseLinear(10, 10, nnz=5))
    rewirer = make_dsr(model, prune_count=5, initial_threshold=1.0)
    for _ in range(6):
        rewirer.rewire()
    assert rewirer.threshold == 1.0  # all but the largest are below it: doubling prunes no more
    rewirer = make_dsr(model, prune_count=1, initial_threshold=1e-307)
    model[0].weight_values.data.zero_()
    for _ in range(6):
        rewirer.rewire()
    assert rewirer.threshold > 0


def test_exact_prunes_the_smallest_of_all_layers():
    model = make_model()
    magnitudes = torch.cat([m.weight_values.detach().abs() for _, m in named_sparse_modules(model)])
    largest = magnitudes.flatten().sort().values[99].item()
    report = make_dsr(model, prune_count=100, threshold="exact").rewire()
    assert report.pruned == report.grown == 100
    assert report.threshold == report.next_threshold == largest


# ---- reports and other layers -------------------------------------------------------------------


def test_report_adds_up_and_prints():
    model = make_model()
    report = make_dsr(model, prune_count=100, threshold="exact").rewire()
    assert [layer.name for layer in report.layers] == ["0", "3"]
    for layer, (_, module) in zip(report.layers, named_sparse_modules(model), strict=True):
        assert layer.nnz_after == layer.nnz_before - layer.pruned + layer.grown == module.nnz
    assert sum(layer.pruned for layer in report.layers) == report.pruned == 100
    assert report.seconds > 0
    assert "100 of 728 non-zeros moved" in str(report)


def test_a_frozen_layer_is_left_alone():
    model = make_model()
    model[0].weight_values.requires_grad_(False)
    before = model[0].col_indices.clone(), model[0].weight_values.detach().clone()
    rewirer = make_dsr(model, prune_count=40, threshold="exact")
    report = rewirer.rewire()
    assert [layer.name for layer in report.layers] == ["3"] and report.pruned == 40
    assert torch.equal(model[0].col_indices, before[0])
    assert torch.equal(model[0].weight_values, before[1])
    model[3].weight_values.requires_grad_(False)
    assert rewirer.rewire().layers == []  # frozen after the rewirer was made: nothing left to do
    with pytest.raises(ValueError, match="all of them are frozen"):
        make_dsr(model)


def test_freezing_another_layer_does_not_change_where_a_layer_grows():
    patterns = []
    for freeze in (False, True):
        model = make_model()
        model[0].weight_values.data.fill_(10.0)  # loses nothing, gains some of what the other loses
        rewirer = make_dsr(model, prune_count=1, initial_threshold=0.03)
        model[0].weight_values.requires_grad_(not freeze)
        rewirer.rewire()
        patterns.append(set(model[3].topology.linear_positions().tolist()))
    fewer, more = sorted(patterns, key=len)
    assert len(fewer) < len(more) and fewer < more


def test_one_parameter_in_two_modules_is_rewired_once():
    generator = torch.Generator().manual_seed(0)
    a, b = (SparseLinear(30, 30, nnz=200) for _ in range(2))
    b.replace_topology(a.crow_indices.clone(), a.col_indices.clone(), b.weight_values.detach())
    a.weight_values.data.normal_(generator=generator)
    b.weight_values = a.weight_values
    model = nn.Sequential(a, b)
    report = make_dsr(model, prune_count=50, threshold="exact").rewire()
    assert len(report.layers) == 1 and report.pruned == 50
    assert a.weight_values is b.weight_values and a.nnz == b.nnz == 200
    assert torch.equal(a.col_indices, b.col_indices) and torch.equal(a.crow_indices, b.crow_indices)
    assert torch.equal(a.to_dense(), b.to_dense())


def test_one_module_in_two_places_is_rewired_once():
    layer = SparseLinear(30, 30, nnz=200)
    report = make_dsr(nn.Sequential(layer, nn.ReLU(), layer), prune_count=50).rewire()
    assert len(report.layers) == 1


def test_sharers_with_different_patterns_are_refused():
    a, b = SparseLinear(30, 30, nnz=200), SparseLinear(30, 30, nnz=200)
    b.weight_values = a.weight_values
    with pytest.raises(ValueError, match="layer '0' and '1': expected the same pattern"):
        make_dsr(nn.Sequential(a, b)).rewire()


def test_float64_and_mixed_models():
    model = nn.Sequential(make_model(), SparseLinear(5, 40, nnz=50, dtype=torch.float64))
    report = make_dsr(model, prune_count=100, threshold="exact").rewire()
    assert report.pruned == report.grown == 100 and total_nnz(model) == 778
    assert model[1].weight_values.dtype == torch.float64


@pytest.mark.parametrize("threshold", ["adaptive", "exact"])
def test_sparse_learning_final_sparsity_below_the_requested(threshold):
    """sparse_learning's growth drew positions that were live already, and so lost weights."""
    model = make_model()
    rewirer = make_dsr(model, prune_fraction=0.3, threshold=threshold, initial_threshold=0.02)
    optimizer = rewirer._optimizers.given[0]
    for i in range(15):
        loss = model(torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(i)))
        loss.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        rewirer.rewire()
        assert total_nnz(model) == 728
        for _, module in named_sparse_modules(model):
            module.topology.validate()


def test_the_same_seed_gives_the_same_run_for_any_number_of_threads():
    patterns = []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            model = make_model()
            rewirer = make_dsr(model, prune_fraction=0.3, threshold="exact", seed=7)
            for _ in range(5):
                rewirer.rewire()
            patterns.append([m.topology.linear_positions() for _, m in named_sparse_modules(model)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*patterns, strict=True))


def test_static_counts_and_touches_nothing():
    model = make_model()
    before = [p.detach().clone() for p in model.parameters()], [b.clone() for b in model.buffers()]
    rewirer = Static(model, torch.optim.Adam(model.parameters()))
    assert [rewirer.step() for _ in range(200)] == [None] * 200
    report = rewirer.rewire()
    assert report.pruned == report.grown == 0 and report.step == 200
    assert [layer.nnz_after for layer in report.layers] == [216, 512]
    assert all(torch.equal(a, b) for a, b in zip(before[0], model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before[1], model.buffers(), strict=True))
    other = Static(make_model())
    other.load_state_dict(rewirer.state_dict())
    assert other.iteration == 200
