"""Run by test_training.py: trains once undisturbed, and once killed again and again.

Forks a child for each attempt, so that the imports are paid once and kills fall into the training.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import safetensors.torch  # noqa: F401 (imported before the forks, as the next)
import sklearn.datasets  # noqa: F401
import torch
import torch.utils.tensorboard
from helpers.small_runs import arguments

from dsr_kernels.cli import main
from dsr_kernels.training import start as _start  # noqa: F401

torch.optim.SGD([torch.zeros(1)], lr=1.0)  # the first optimizer imports half of torch
folder, kills = Path(sys.argv[1]), int(sys.argv[2])
changes = ("checkpoint.every_iterations=1", "training.epochs=8")
chance = random.Random(20190515)


def start(*args: str) -> int:
    """A child process that runs one `dsr` command."""
    pid = os.fork()
    if pid == 0:
        with open(folder / "output.txt", "a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            os._exit(main(list(args)))
    return pid


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def output() -> str:
    return (folder / "output.txt").read_text()


def newest() -> int:
    """Iteration of the newest checkpoint; -1 before the first."""
    steps = sorted((folder / "killed/checkpoints").glob("step-*"))
    return int(steps[-1].name[5:15]) if steps else -1


def command() -> list[str]:
    if (folder / "killed/recipe.toml").exists():
        return ["train", "--quiet", "--no-report", "--resume", str(folder / "killed")]
    return arguments(folder / "killed", *changes)


began = time.monotonic()
assert wait(start(*arguments(folder / "whole", *changes))) == 0, output()
duration = time.monotonic() - began
for attempt in range(kills):
    before, began, pid = newest(), time.monotonic(), start(*command())
    if attempt % 4:  # the others die somewhere on the way to their first checkpoint
        while newest() == before and time.monotonic() - began < 30:
            time.sleep(0.001)
    time.sleep(chance.uniform(0, duration / kills))
    os.kill(pid, signal.SIGKILL)
    assert wait(pid) in (-signal.SIGKILL, 0), output()
    print(f"killed at {newest()}", flush=True)
assert wait(start(*command())) == 0, output()
