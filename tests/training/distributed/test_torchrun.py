"""Real `torchrun`, which ends all processes as soon as one has ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import crew
from helpers.small_runs import arguments

PATIENCE = 120  # seconds; a loaded machine imports torch slowly
SLOW = """
import faulthandler, os, sys, time
from pathlib import Path
from dsr_kernels import cli
from dsr_kernels.training import loop
from dsr_kernels.training.run.checkpoint import Checkpoints

faulthandler.dump_traceback_later(100)  # where it hangs
folder, save = Path(os.environ["DSR_TEST"]), Checkpoints.save

def slowly(self, step, *given):
    if step:
        (folder / "saving").touch()
        time.sleep(2)
    return save(self, step, *given)

def iteration(self, *given, real=loop.Trainer._iteration):
    (folder / f"rank{self.world.rank}").write_text(str(os.getpid()))
    time.sleep(0.05)
    return real(self, *given)

Checkpoints.save, loop.Trainer._iteration = slowly, iteration
sys.exit(cli.main(sys.argv[1:]))
"""


def wait_for(path: Path) -> str:
    """The content of a file, once there is any."""
    end = time.monotonic() + PATIENCE
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, path
        time.sleep(0.02)
    return path.read_text()


@contextlib.contextmanager
def two_processes(folder: Path, text: str) -> Iterator[subprocess.Popen]:
    """torchrun with two processes of a script that train into `folder`/run, until all have ended.

    What they say is in `folder`/output.
    """
    script = folder / "script.py"
    script.write_text(text)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", str(script), *arguments(folder / "run")]
    variables = {**os.environ, "DSR_TEST": str(folder), "OMP_NUM_THREADS": "1"}
    with (
        (folder / "output").open("w") as output,
        subprocess.Popen(command, env=variables, stdout=output, stderr=output) as agent,
    ):
        try:
            yield agent
            agent.wait(PATIENCE)
        finally:
            agent.terminate()


# Each process stays in its start, and says so.
STARTS = """
import os, sys, time
from pathlib import Path
from dsr_kernels import cli
from dsr_kernels.training import loop

def start(self):
    (Path(os.environ["DSR_TEST"]) / f"rank{self.world.rank}").write_text(str(os.getpid()))
    time.sleep(100)

loop.Trainer.start = start
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("lost", [True, False], ids=["kill -9", "SIGTERM"])
def test_an_end_before_training_is_one_sentence(lost, tmp_path):
    run = tmp_path / "run"
    with two_processes(tmp_path, STARTS) as agent:
        ranks = [int(wait_for(tmp_path / f"rank{rank}")) for rank in range(2)]
        os.kill(*((ranks[1], signal.SIGKILL) if lost else (agent.pid, signal.SIGTERM)))
    (sentence,) = re.findall("^dsr: .*$", (tmp_path / "output").read_text(), re.M)
    assert sentence.startswith("dsr: rank 1 on " if lost else "dsr: stopped by SIGTERM; ")
    assert sentence.endswith(
        f"{run} keeps the recipe, there is no checkpoint yet; go on with: {crew.command(2)} train "
        f"--resume {run}"
    )


def test_sigterm_to_the_first_process_leaves_a_checkpoint_and_one_sentence(tmp_path):
    run = tmp_path / "run"
    with two_processes(tmp_path, SLOW):
        os.kill(int(wait_for(tmp_path / "rank0")), signal.SIGTERM)
    text = (tmp_path / "output").read_text()
    sentences = re.findall("^dsr: .*$", text, re.M)
    assert len(sentences) == 1, text
    (iteration,) = re.findall(r"dsr: stopped after iteration (\d+) of 36; continue", sentences[0])
    assert sentences[0].endswith(f"with: {crew.command(2)} train --resume {run}")
    steps = sorted(path.name for path in run.glob("checkpoints/step-*"))
    assert steps[-1] == f"step-{int(iteration):010}", text
