"""Experiments whose cells are fake_train.py: they end at once, and tell what happened to them."""

from __future__ import annotations

import csv
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dsr_kernels.cli import main
from dsr_kernels.experiments import runner
from dsr_kernels.experiments.cluster import launcher

TESTS = Path(__file__).parents[1]
TRAIN = (sys.executable, str(TESTS / "helpers/fake_train.py"))
# Grids of one cell, and of three of which one starts from another; the names of their cells.
ONE = 'recipe = "lenet300-digits"\nmethods = ["dsr"]\nsparsities = [0.9]\nseeds = [0]\n'
THREE = ONE.replace('["dsr"]', '["static", "dsr", "after"]') + (
    '[method.after]\nmethod = "static"\nstart.from = "dsr"\nstart.take = "structure"\n'
)
DSR, AFTER, STATIC = "dsr-0.9-s0", "after-0.9-s0", "static-0.9-s0"


def player(tmp_path: Path, monkeypatch, grid: str, *always: str) -> Callable[..., int]:
    """A function that runs the grid with these and more arguments, and a plan of what cells do.

    It has the folder `out` and the file `grid`.
    """
    monkeypatch.setattr(runner, "TRAIN", TRAIN)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(launcher, "POLL_SECONDS", 0.05)
    monkeypatch.setattr("dsr_kernels.experiments.plots.write", lambda results, rows: None)
    (tmp_path / "g.toml").write_text(grid)

    def run(*arguments: str, **plan) -> int:
        monkeypatch.setenv("DSR_FAKE", json.dumps(plan))
        out = ["--out", str(tmp_path / "out")]
        return main(["experiment", str(tmp_path / "g.toml"), *out, *always, *arguments])

    run.out, run.grid = tmp_path / "out", tmp_path / "g.toml"
    return run


def events(out: Path) -> list[tuple[str, str]]:
    """(what, cell) in the order it happened; forgets them."""
    path = out / "events"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [tuple(line.split(" ")[:2]) for line in lines]


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {f"{row['method']}-{row['sparsity']}-s{row['seed']}": row for row in rows}


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in a minute"
        time.sleep(0.01)


def once(holds: Callable[[], bool], act: Callable[[], None]) -> None:
    """Does something, in a thread, once the condition holds."""

    def watch() -> None:
        wait_until(holds)
        act()

    threading.Thread(target=watch, daemon=True).start()


def have_begun(out: Path, begun: int) -> bool:
    path = out / "events"
    return path.exists() and path.read_text().count("begin ") >= begun


def once_begun(out: Path, begun: int, act: Callable[[], None]) -> None:
    """Does something, in a thread, once so many cells have begun."""
    once(lambda: have_begun(out, begun), act)


def release_when_followed(out: Path) -> None:
    """Lets the cells that hold go on once the next command has looked which jobs there are."""
    path = out / "jobs.json"
    before = path.stat().st_mtime_ns
    once(lambda: path.stat().st_mtime_ns != before, (out / "release").touch)


def interrupt_when(out: Path, begun: int, signum: int) -> None:
    """Sends the signal to this process once so many cells have begun."""
    once_begun(out, begun, lambda: os.kill(os.getpid(), signum))


def jobs(out: Path) -> dict[str, str]:
    """The ids of jobs by the cell, as the experiment has them."""
    return json.loads((out / "jobs.json").read_text())["jobs"]


def processes_of(words: str) -> list[int]:
    """The processes with these words in their command line, but for this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if words in line and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found
