"""The GPU's rewire engine, run by the emulator, against the CPU's: equal bit for bit.

`-k small` picks what the emulator's sanitizer builds run in a reasonable time.
"""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import cuda_emulated
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rewire_cases import Case, apply, decide, describe, layers, open_plan, random_case
from test_rewire_state import OPTIMIZERS, make_model, train

from dsr_kernels import _native
from dsr_kernels.nn import named_sparse_modules
from dsr_kernels.rewiring import DSR, Static
from dsr_kernels.rewiring import plan as plans

DECISIONS = ("prunable", "below", "room", "cut", "pruned", "grown", "nnz_after")
GUARD = 64  # bytes around a workspace that nobody may write
HOW_MUCH = st.one_of(
    st.sampled_from([0.0, 1e-9, 0.1, 1 / 3, 0.5, 1.0, 1.5, math.inf]), st.integers(0, 80)
)


class Workspaces:
    """Device memory that starts as rubbish and shows what is written around it."""

    def __init__(self) -> None:
        self.blocks: list[torch.Tensor] = []

    def __call__(self, size: int) -> int:
        self.blocks.append(torch.full((size + 2 * GUARD,), 0xA5, dtype=torch.uint8))
        return self.blocks[-1].data_ptr() + GUARD

    def check(self) -> None:
        for block in self.blocks:
            assert (block[:GUARD] == 0xA5).all() and (block[-GUARD:] == 0xA5).all()


def open_cuda(cases: list[Case], workspaces: Workspaces | None = None):
    allocate = Workspaces() if workspaces is None else workspaces
    return cuda_emulated.load().RewirePlan(describe(cases), 0, 0, allocate)


def kind_of(how_much: float | int) -> dict[str, float | int]:
    return {"count" if isinstance(how_much, int) else "threshold": how_much}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


def assert_equals_cpu(cases: list[Case], seed: int = 0, step: int = 0, **how) -> None:
    workspaces = Workspaces()
    cpu, cuda = open_plan(cases), open_cuda(cases, workspaces)
    for plan in (cpu, cuda):
        decide(plan, **how)
    for name in DECISIONS:
        assert getattr(cuda, name) == getattr(cpu, name), name
    expected = apply(cpu, cases, seed=seed, step=step)
    for new, wanted in zip(apply(cuda, cases, seed=seed, step=step), expected, strict=True):
        for name in ("crow", "col", "values", "momentum"):
            assert same_bits(getattr(new, name), getattr(wanted, name)), name
    workspaces.check()


# ---- bits ---------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(layers(), HOW_MUCH, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_any_layers(cases, how_much, seed, step):
    cuda_emulated.load().emulator.configure(seed=seed % 1000)
    assert_equals_cpu(cases, seed, step, **kind_of(how_much))


def several_chunks() -> list[Case]:
    """Boundaries of chunks in entries, rows and what grows; full, empty and single-entry layers."""
    return [
        random_case(64, 300, 5000, 0, grid=3),
        random_case(10, 103, 1030, 1, torch.float64),
        random_case(5, 5, 0, 2),
        random_case(2500, 7, 1024, 3),
        random_case(50, 50, 1, 4),
        random_case(1, 40_000, 2048, 5, torch.float64, grid=3),
        random_case(300, 40, 1025, 6, grid=1),
    ]


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
@pytest.mark.parametrize("how_much", [0.0, 0.3, 1 / 3, math.inf, 0, 1, 4000, 10**6])
def test_layers_of_several_chunks(order, how_much):
    cuda_emulated.load().emulator.configure(seed=3, order=order, preempt=0.1)
    assert_equals_cpu(several_chunks(), seed=5, step=2, **kind_of(how_much))


def test_small_layers():
    cases = [random_case(40, 60, 1100, 0, grid=2), random_case(4, 5, 7, 1, torch.float64)]
    cuda_emulated.load().emulator.configure(seed=1, preempt=0.1)
    for how in ({"threshold": 0.5}, {"count": 300}):
        assert_equals_cpu(cases, seed=1, **how)


@pytest.mark.parametrize("count", [1, 700, 1023, 1024, 1999, 3000, 4095, 5000])
def test_ties_are_cut_anywhere(count):
    """Equal magnitudes in three layers: the one that is cut is cut inside a chunk or between."""
    cases = [
        Case.make(2, 5000, range(0, 2 * n, 2), [(-1.0) ** i for i in range(n)])
        for n in (1000, 2000, 2049)
    ]
    assert_equals_cpu(cases, count=count)


@pytest.mark.parametrize(
    ("rows", "row_length"), [(60_000, 50_000), (3, 2**31 - 1), (5000, 2**31 - 1)]
)
def test_huge_layers(rows, row_length):
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(rows * row_length, (1500,), generator=generator).unique().tolist()
    values = [(-1) ** i * (i * 7919 % 1500 + 1) / 1500 for i in range(len(positions))]
    assert_equals_cpu([Case.make(rows, row_length, positions, values)], threshold=0.8)


def test_nearly_full_layers_prune_only_what_they_can_regrow():
    cases = [random_case(20, 60, 1195, 0), random_case(4, 5, 19, 1)]
    assert_equals_cpu(cases, threshold=2.0)
    assert_equals_cpu(cases, count=10**6)


def test_subnormal_huge_and_signed_zero_weights():
    values = [0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 1e-38, 2e-38]
    double = [0.0, -0.0, 5e-324, 1e308, -1e308, 1e-45, 1.0, 1.0 + 2**-52]
    cases = [
        Case.make(4, 9, range(3, 11), values),
        Case.make(4, 9, range(20, 28), double, torch.float64),
    ]
    for how in [{"threshold": t} for t in (5e-324, 1e-45, 1.0)] + [{"count": n} for n in range(15)]:
        assert_equals_cpu(cases, **how)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_items_of_every_size_move(dtype):
    case = random_case(30, 50, 1100, 0)
    case.momentum = torch.arange(1, 1101).to(dtype)
    assert_equals_cpu([case, case], threshold=0.5)


def test_the_number_of_launches_does_not_depend_on_the_number_of_layers():
    emulator = cuda_emulated.load().emulator
    launches = []
    for n in (1, 20):
        cases = [random_case(6, 7, 20, seed) for seed in range(n)]
        before = emulator.stats()["launches"]
        plan = open_cuda(cases)
        decide(plan, count=8)
        apply(plan, cases)
        launches.append(emulator.stats()["launches"] - before)
    assert launches[0] == launches[1] < 40


# ---- errors -------------------------------------------------------------------------------------


def message(open_with, cases: list[Case], prepare=lambda plan: None, **how) -> str:
    with pytest.raises(ValueError) as raised:
        plan = open_with(cases)
        decide(plan, **how)
        prepare(plan)
        apply(plan, cases)
    return str(raised.value)


def assert_same_error(cases: list[Case], expected: str, **how) -> None:
    cpu = message(open_plan, cases, **how)
    assert message(open_cuda, cases, **how) == cpu
    assert expected in cpu


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_weight_that_is_not_finite_is_named(bad, dtype):
    cases = [random_case(4, 4, 3, 0), random_case(40, 100, 2500, 1, dtype)]
    cases[1].values[[2300, 1500, 1501, 2499]] = bad
    row, col = divmod(cases[1].positions()[1500], 100)
    for how in ({"threshold": 0.5}, {"count": 100}):
        assert_same_error(cases, f"'layer1': the weight at row {row}, column {col} is", **how)
    cases[0].values[2] = bad
    assert_same_error(cases, "'layer0'", threshold=0.5)


def broken_cases() -> dict[str, tuple[Case, str]]:
    found = {}
    for name, expected in [
        ("crow falls", "crow_indices do not rise"),
        ("crow starts late", "crow_indices do not rise"),
        ("crow ends early", "crow_indices do not rise"),
        ("col falls", "col_indices are not ascending"),
        ("col repeats", "col_indices are not ascending"),
        ("col is negative", "col_indices are not ascending"),
        ("col is beyond the row", "col_indices are not ascending"),
    ]:
        found[name] = random_case(1500, 10, 4000, 1), expected
    found["crow falls"][0].crow[1200] = 3
    found["crow starts late"][0].crow[0] = 1
    found["crow ends early"][0].crow[-1] -= 1
    full = Case.make(1500, 10, range(4000), [0.5] * 4000)
    for name, change in [("falls", {2044: 9}), ("repeats", {2048: 7})]:
        found[f"col {name}"] = copy.deepcopy(full), found[f"col {name}"][1]
        for entry, col in change.items():
            found[f"col {name}"][0].col[entry] = col
    first_of_row = found["col is negative"][0].crow[700].item()
    found["col is negative"][0].col[first_of_row] = -1
    last_of_row = found["col is beyond the row"][0].crow[700].item() - 1
    found["col is beyond the row"][0].col[last_of_row] = 10
    return found


@pytest.mark.parametrize("name", broken_cases())
def test_broken_patterns_are_named(name):
    case, expected = broken_cases()[name]
    assert_same_error([random_case(4, 4, 3, 0), case], f"'layer1': {expected}", threshold=0.5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_weights_that_change_between_pruning_and_applying_are_noticed(value):
    case = random_case(40, 100, 2500, 1)
    before = case.values.clone()

    def change(plan):
        case.values.fill_(value)

    expected = message(open_plan, [case], change, threshold=0.5)
    case.values.copy_(before)
    assert message(open_cuda, [case], change, threshold=0.5) == expected
    assert "the weights changed during the rewire" in expected


def test_bad_arguments_are_named():
    cases = [random_case(4, 4, 3, 0)]
    assert_same_error(cases, "threshold: expected a number >= 0", threshold=math.nan)
    assert_same_error(cases, "count: expected >= 0, got -1", count=-1)
    with pytest.raises(ValueError, match="apply: expected prune_below or prune_smallest before"):
        apply(open_cuda(cases), cases)
    plan = open_cuda(cases)
    decide(plan, count=1)
    with pytest.raises(ValueError, match="outputs: expected one for each of 1 layers, got 0"):
        plan.apply(0, 0, [])
    with pytest.raises(ValueError, match="item_size: expected 1, 2, 4 or 8 bytes, got 3"):
        plan.apply(0, 0, [(0, 0, [(0, 0, 3)])])
    with pytest.raises(ValueError, match="17 non-zeros do not fit 4 x 4 positions"):
        cuda_emulated.load().RewirePlan(
            [("x", 4, 4, 17, 0, 0, 0, "float32", 0)], 0, 0, Workspaces()
        )


# ---- methods ------------------------------------------------------------------------------------


@pytest.fixture
def on_gpu(monkeypatch):
    """Rewires of CPU tensors go to the emulated GPU; returns how many plans it has opened."""
    opened = []

    def open_on_gpu(layers):
        opened.append(len(layers))
        return plans._open_on_gpu(layers, torch.device("cpu"))

    def switch():
        monkeypatch.setattr(_native, "_cuda", cuda_emulated.load())
        monkeypatch.setattr(plans, "_open_on_cpu", open_on_gpu)
        return opened

    return switch


def trained_tensors(name: str, **arguments):
    """Everything there is after some rewires, and their reports."""
    model = make_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    average = copy.deepcopy(model)
    rewirer = DSR(model, optimizer, every=2, seed=3, **arguments)
    rewirer.follow(average)
    reports = train(model, optimizer, rewirer, 10)
    tensors = [*model.state_dict().values(), *average.state_dict().values()]
    for _, module in named_sparse_modules(model):
        tensors += [v for v in optimizer.state[module.values].values() if torch.is_tensor(v)]
    lines = [(r.threshold, r.next_threshold, r.layers) for r in reports if r is not None]
    return tensors, lines


@pytest.mark.parametrize("name", ["momentum", "nesterov", "amsgrad", "adamw_foreach"])
@pytest.mark.parametrize("threshold", ["adaptive", "exact"])
def test_dsr_trains_as_on_the_cpu(name, threshold, on_gpu):
    arguments = {"prune_fraction": 0.3, "threshold": threshold, "initial_threshold": 0.02}
    if threshold == "exact":
        del arguments["initial_threshold"]
    expected, expected_reports = trained_tensors(name, **arguments)
    opened = on_gpu()
    tensors, reports = trained_tensors(name, **arguments)
    assert opened == [2] * 5
    assert reports == expected_reports
    assert sum(layer.pruned for _, _, layers in reports for layer in layers) > 0
    for tensor, wanted in zip(tensors, expected, strict=True):
        assert same_bits(tensor, wanted)


def test_static_and_frozen_models_need_no_gpu(on_gpu):
    opened = on_gpu()
    model = make_model()
    assert Static(model).rewire().pruned == 0
    rewirer = DSR(model, OPTIMIZERS["sgd"](model.parameters()))
    for _, module in named_sparse_modules(model):
        module.values.requires_grad_(False)
    assert rewirer.rewire().layers == []
    assert opened == [0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_failed_rewire_changes_nothing(bad, on_gpu):
    on_gpu()
    model = make_model()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    rewirer = DSR(model, optimizer, every=1)
    train(model, optimizer, rewirer, 3)
    model[3].values.data[17] = bad
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), rewirer.state_dict()))
    with pytest.raises(ValueError, match=r"layer '3': the weight at row \d+, column \d+ is"):
        rewirer.step()
    for old, new in zip(before[0].values(), model.state_dict().values(), strict=True):
        assert same_bits(old, new)
    assert rewirer.state_dict() == before[2]


def on(device: str, name: str = "a") -> SimpleNamespace:
    return SimpleNamespace(name=name, values=SimpleNamespace(device=torch.device(device)))


def test_where_layers_may_be(monkeypatch):
    with pytest.raises(ValueError, match=r"layers 'a' and 'b': .* got cuda:1 and cpu"):
        plans.open_plan([on("cuda:1"), on("cuda:1"), on("cpu", "b")])
    monkeypatch.setattr(_native, "_cuda", None)
    with pytest.raises(NotImplementedError, match="cuda:0 needs the CUDA kernels"):
        plans.open_plan([on("cuda:0")])
