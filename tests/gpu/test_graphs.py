"""Steps from CUDA graphs give what a plain loop gives, bit for bit. (On a CPU with their stand-in,
which tests/cuda_graphs knows better.)"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import graph_stand_in
from helpers.graphed_twins import Twins, batches, network, sgd
from helpers.method_training import METHODS
from helpers.small_runs import artefacts, train
from torch import nn

from dsr_kernels.rewiring import DSR

from .device import DEVICE, ON_CUDA, cuda_only
from .stand_ins import use_where_missing

pytestmark = pytest.mark.gpu
dsr = partial(DSR, prune_fraction=0.2, every=4)
fused = partial(sgd, fused=True)


@pytest.fixture(autouse=True)
def _graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    if not ON_CUDA:
        graph_stand_in.use(monkeypatch)


def twins(model: nn.Module | None = None, **options) -> Twins:
    return Twins(model, device=DEVICE, **options)


@pytest.mark.parametrize("attach", [False, True])
@pytest.mark.parametrize("method", ["dsr", "set", "rigl", "snfs", "gmp", "deepr"])
def test_methods(method: str, attach: bool) -> None:
    make, arguments = METHODS[method]
    both = twins(make_rewirer=partial(make, **arguments), attach=attach)
    both.train(batches(14))
    assert both.step.why_eager is None and both.graphed.rewirer.rewires


@pytest.mark.parametrize(
    "options",
    [
        {"autocast": torch.bfloat16},
        {"autocast": torch.bfloat16, "clip": 0.1},
        {"scaled": True, "make_optimizer": fused},
        {"make_optimizer": partial(fused, momentum=0.0, weight_decay=0.1)},
        {"make_optimizer": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, fused=True)},
    ],
    ids=["bfloat16", "clipped", "scaled", "fused", "fused AdamW"],
)
def test_kinds_of_steps(options: dict) -> None:
    both = twins(make_rewirer=dsr, **options)
    both.train(batches(11))
    assert both.step.why_eager is None and both.step.is_replaying


@cuda_only
def test_float16() -> None:
    both = twins(autocast=torch.float16, scaled=True, make_optimizer=fused)
    both.train(batches(6))
    both.train((x * float("inf"), y) for x, y in batches(1))  # a step that is left out
    assert both.step.why_eager is None and both.step.is_replaying


def test_capturable_adam_and_adam_that_is_not() -> None:
    device_lr = torch.tensor(0.01, device=DEVICE)
    made = {"lr": device_lr, "capturable": True} if ON_CUDA else {"lr": 0.01, "fused": True}
    both = twins(make_optimizer=lambda m: torch.optim.Adam(m.parameters(), **made))
    both.train(batches(4))
    assert both.step.is_replaying
    both = twins(make_optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=0.01))
    with pytest.warns(UserWarning, match="no CUDA graph, steps are eager"):
        both.train(batches(4))


def test_a_rate_on_the_device() -> None:
    make = lambda m: fused(m, lr=torch.tensor(0.05, device=DEVICE))  # noqa: E731
    both = twins(make_optimizer=make)
    for side in both.sides:
        side.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(side.optimizer, 20)
    for batch in batches(8):
        both.train(iter([batch]))
        for side in both.sides:
            side.schedule.step()
    assert both.step.is_replaying


def test_dropout_and_batches_of_two_sizes_and_evaluation() -> None:
    both = twins(network(dropout=0.5))
    for epoch in range(3):
        both.train(batches(4, seed=epoch))
        both.train(batches(1, size=4, seed=epoch))
        for side in both.sides:
            side.model.eval()
            with torch.no_grad():
                side.model(next(batches(1))[0].to(DEVICE))
            side.model.train()
    assert both.step.is_replaying


def test_a_step_that_reads_a_number_falls_back() -> None:
    class Reads(nn.Module):
        def forward(self, x):
            return x if x.abs().max().item() > 0 else -x

    both = twins(nn.Sequential(*network(dropout=0.5), Reads()), make_rewirer=dsr)
    with pytest.warns(UserWarning, match="no CUDA graph, steps are eager"):
        both.train(batches(9))
    another = twins(make_rewirer=dsr)  # the device is as before
    another.train(batches(3))
    assert another.step.is_replaying


@cuda_only
def test_memory_stays_flat_over_100_rewires(note) -> None:
    model = network().to(DEVICE)
    both = Twins(model, make_rewirer=partial(DSR, prune_fraction=0.2, every=3), device=DEVICE)
    x, target = (t.to(DEVICE) for t in next(batches(1, size=256)))
    reserved = []
    for _ in range(101):
        for _ in range(3):
            both.step(x, target)
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved())
    note(
        f"graphs: {reserved[2] >> 20} MiB reserved after 3 rewires, {reserved[-1] >> 20} after 101"
    )
    assert both.graphed.rewirer.rewires == 101 and both.step.why_eager is None
    assert reserved[-1] <= 1.1 * max(reserved[1:4])


@cuda_only
def test_no_replay_waits_for_the_device() -> None:
    both = twins(make_rewirer=partial(dsr, every=1000))
    given = [(x.to(DEVICE), y.to(DEVICE)) for x, y in batches(5)]
    for batch in given[:3]:
        both.step(*batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in given[3:]:
            both.step(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ["lenet", "wrn"])
def test_a_run_with_graphs_is_one_without(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_where_missing(monkeypatch)
    for graphs in ("true", "false"):
        change = f"training.cuda_graph={graphs}"
        assert train(tmp_path / graphs, change, kind=kind, device=DEVICE.type) == 0
    assert artefacts(tmp_path / "true") == artefacts(tmp_path / "false")
