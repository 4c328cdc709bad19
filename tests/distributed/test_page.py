"""The examples of docs/distributed.md, as they stand there."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from helpers.parallel_training import (
    assert_as_alone,
    assert_equal,
    batch,
    make,
    make_model,
    sgd,
    state_of,
    step,
)
from helpers.team import PATIENCE
from torch.optim.swa_utils import AveragedModel

from dsr_kernels.distributed import DistributedDataParallel, SparseLoadPlanner

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/distributed.md").read_text(encoding="utf-8")
TRAINING, PARTS, CHECKPOINT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
AFTERWARDS = """
os.write(1, f"rewires {rewirer.rewires} of {rewirer.iteration}\\n".encode())  # in one piece
"""


def test_the_example_trains(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAINING + AFTERWARDS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if torch.cuda.device_count() < 2:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    arguments = ["--nproc-per-node", "2", str(script)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    run = subprocess.Popen([*command, *arguments], env=environment, start_new_session=True, **pipes)
    try:
        shown, _ = run.communicate(timeout=PATIENCE)
    finally:
        if run.returncode is None:  # its workers are of its session
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 0, shown
    assert shown.count("rewires 8 of 80") == 2


def resume(rank: int, size: int, path: str):
    model = make_model()
    names = {"ddp": DistributedDataParallel(model), "optimizer": sgd(model), "path": path}
    names["rewirer"] = make("dsr", names["ddp"], names["optimizer"])
    for number in range(6):
        step(names["ddp"], names["optimizer"], number, rank, size)
        names["rewirer"].step()
    before, after = CHECKPOINT.split("\n\nweights, moments = get_state_dict(ddp, optimizer)  #")
    exec(before, names)
    values = model[0].weight_values.detach().clone()
    for number in range(6):
        step(names["ddp"], names["optimizer"], number, rank, size)
        names["rewirer"].step()
    exec("weights, moments = get_state_dict(ddp, optimizer)  #" + after, names)
    assert names["rewirer"].iteration == 6
    dist.barrier()
    return torch.equal(values, model[0].weight_values)


def test_the_checkpoint_is_resumed(two, tmp_path):
    assert two.run(resume, str(tmp_path)) == [True, True]


class Alone(torch.nn.Module):
    """A model that one process trains, with the names of DistributedDataParallel."""

    no_sync = contextlib.nullcontext

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


def train_in_parts(rank: int, size: int) -> dict:
    """The page's steps of several parts; all names of it afterwards."""
    model = make_model()
    ddp = DistributedDataParallel(model) if size > 1 else Alone(model)
    names = {"ddp": ddp, "optimizer": sgd(model), "torch": torch}
    names["loss_function"] = torch.nn.functional.mse_loss
    names["rewirer"] = make("dsr", ddp, names["optimizer"])
    pairs = [[batch(2 * number + part, rank, size) for part in range(2)] for number in range(12)]
    exec(PARTS, names | {"batches": pairs[:0]})
    names["batches"] = pairs
    exec(PARTS, names)
    assert names["rewirer"].rewires == 2
    return names


def average_of_parts(rank: int, size: int):
    ema = train_in_parts(rank, size)["ema"].module
    ema(batch(0, rank, size)[0])  # it computes, for the rewirer has followed it
    return state_of(ema)


def test_steps_of_several_parts_are_those_of_one_process(two):
    assert_as_alone(two, average_of_parts)


def resume_an_average(rank: int, size: int, path: str):
    names = train_in_parts(rank, size)
    state = {"model": names["ddp"].module.state_dict(), "ema": names["ema"].state_dict()}
    dcp.save(state | {"step": 12}, checkpoint_id=path)
    model, ema = make_model(seed=1), AveragedModel(make_model(seed=1))
    state = {"model": model.state_dict(), "ema": ema.state_dict(), "step": 0}
    dcp.load(state, checkpoint_id=path, planner=SparseLoadPlanner())
    model.load_state_dict(state["model"])
    ema.load_state_dict(state["ema"])
    assert_equal(state_of(model), state_of(names["ddp"].module), exactly=True)
    assert_equal(state_of(ema), state_of(names["ema"]), exactly=True)
    return state["step"]


def test_an_average_and_a_counter_are_in_the_same_checkpoint(two, tmp_path):
    assert two.run(resume_an_average, str(tmp_path)) == [12, 12]
