"""Small, quick runs for the tests of training."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

from dsr_kernels.cli import main
from dsr_kernels.training import loop
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.rewirer import takes
from dsr_kernels.training.recipe.schema import Recipe

LENET = [
    "training.epochs=3",
    "training.batch_size=100",
    "data.image_size=0",
    "rewiring.every=[[0, 5]]",
    "rewiring.prune_count=100",
    "rewiring.stop_epoch=2.5",
]
WRN = [
    "training.epochs=1",
    "training.batch_size=100",
    "model.width=0.25",
    "data.image_size=8",
    "rewiring.every=[[0, 3]]",
    "rewiring.prune_count=100",
    "rewiring.stop_epoch=0",
]
QUIET = ["--quiet", "--no-report"]
LENET_BASE, WRN_BASE = "lenet300-digits", "wrn28_2-digits"


def small(kind: str = "lenet", *changes: str) -> Recipe:
    """LeNet on the 8x8 digits (12 iterations an epoch), or a WRN-28-0.25 on them."""
    base, own = (LENET_BASE, LENET) if kind == "lenet" else (WRN_BASE, WRN)
    return recipes.load(base, fitting(own, changes))


def fitting(own: list[str], changes: tuple[str, ...]) -> list[str]:
    """All of `changes`, after those of `own` that their method takes."""
    methods = [change.partition("=")[2] for change in changes if change.startswith("method=")]
    method = (methods or ["dsr"])[-1]
    return [*(change for change in own if takes(method, change.partition("=")[0])), *changes]


def arguments(out: Path, *changes: str, kind: str = "lenet", device: str = "cpu") -> list[str]:
    """The same as arguments of ``dsr``."""
    base, own = (LENET_BASE, LENET) if kind == "lenet" else (WRN_BASE, WRN)
    settings = [part for change in fitting(own, changes) for part in ("--set", change)]
    options = ["--recipe", base, "--device", device, "--out", str(out)]
    return ["train", *QUIET, *options, *settings]


def train(out: Path, *changes: str, kind: str = "lenet", device: str = "cpu") -> int:
    return main(arguments(out, *changes, kind=kind, device=device))


def artefacts(run: Path) -> dict[str, bytes]:
    """What must be equal, byte by byte, between equal runs."""
    files = ["metrics.csv", "rewires.csv", "checkpoints/latest/weights.safetensors"]
    return {name: (run / name).read_bytes() for name in files}


def rows(run: Path, name: str) -> list[dict[str, str]]:
    """One of the CSV files of a run."""
    with (run / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def interrupt_at(monkeypatch, iteration: int, signum: int = signal.SIGINT) -> None:
    """A real signal right after that iteration."""
    real, seen = loop.Progress.iteration, []

    def hook(self, *args):
        seen.append(None)
        if len(seen) == iteration:
            os.kill(os.getpid(), signum)
        return real(self, *args)

    monkeypatch.setattr(loop.Progress, "iteration", hook)


def refused(capsys, *args):
    """The one sentence on stderr of a command that must end with code 2."""
    assert main(list(args)) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("dsr: ") and shown.err.count("\n") == 1
    return shown.err
