"""The loop: it learns, repeats itself bit for bit, and continues exactly from anywhere."""

import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.small_runs import QUIET, artefacts, interrupt_at, rows, small, train
from torch.nn import functional as F

from dsr_kernels.cli import main
from dsr_kernels.rewiring import DSR
from dsr_kernels.training import loop
from dsr_kernels.training.data import sets as datasets
from dsr_kernels.training.run.checkpoint import Checkpoints
from dsr_kernels.training.setup import build_model, build_optimizer

KINDS = ["lenet", "wrn"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of each kind, to compare with."""
    runs = {kind: tmp_path_factory.mktemp(kind) / "run" for kind in KINDS}
    for kind, run in runs.items():
        assert train(run, kind=kind) == 0
    return runs


def test_lenet_learns_the_digits(tmp_path):
    assert train(tmp_path / "r", "training.epochs=6", "rewiring.stop_epoch=5") == 0
    last = rows(tmp_path / "r", "metrics")[-1]
    assert float(last["validation_accuracy"]) > 0.9
    first = rows(tmp_path / "r", "metrics")[0]
    assert float(last["train_loss"]) < 0.5 * float(first["train_loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_rewire_keeps_the_total_and_is_recorded(finished, kind):
    table = rows(finished[kind], "rewires")
    assert len({row["nonzeros"] for row in table}) == 1
    assert int(table[0]["nonzeros"]) > 0 and table[0]["pruned"] == ""
    assert len(table) > 2
    for row in table:
        layers = [int(v) for k, v in row.items() if k.startswith("nonzeros:")]
        assert sum(layers) == int(row["nonzeros"]) and min(layers) >= 1
        assert row["pruned"] == row["grown"]
    assert any(int(row["pruned"]) > 0 for row in table[1:])


def test_rewires_fall_on_the_schedule_and_stop(finished):
    iterations = [int(row["iteration"]) for row in rows(finished["lenet"], "rewires")]
    assert iterations == [0, 5, 10, 15, 20, 25, 30]  # 12 an epoch; none after epoch 2.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bits(finished, kind, tmp_path):
    train(tmp_path / "again", kind=kind)
    assert artefacts(tmp_path / "again") == artefacts(finished[kind])
    train(tmp_path / "other", "seed=1", kind=kind)
    assert artefacts(tmp_path / "other")["metrics.csv"] != artefacts(finished[kind])["metrics.csv"]


@pytest.mark.parametrize(
    "kind,iteration", [("lenet", 1), ("lenet", 12), ("lenet", 17), ("lenet", 36), ("wrn", 5)]
)
def test_ctrl_c_saves_and_resume_is_exact(finished, kind, iteration, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, iteration)
        assert train(run, kind=kind) == 130
    message = capsys.readouterr().err
    assert f"after iteration {iteration} of" in message
    assert f"dsr train --resume {run}" in message
    assert not (run / "results.json").exists()
    assert main(["train", "--resume", str(run), *QUIET]) == 0
    assert artefacts(run) == artefacts(finished[kind])


def test_resume_takes_up_the_number_of_threads_the_run_began_with(finished, tmp_path, capsys):
    """torch's BN and dense layers round differently with another number of threads."""
    run, before = tmp_path / "run", torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 17)
        train(run)
    try:
        torch.set_num_threads(before + 1)
        assert main(["train", "--resume", str(run), *QUIET]) == 0
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
    assert artefacts(run) == artefacts(finished["lenet"])


def test_sigterm_saves_too(tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 2, signal.SIGTERM)
    assert train(tmp_path / "run") == 143
    assert Checkpoints(tmp_path / "run/checkpoints").load_latest()[1]["position"]["iteration"] == 2


def test_several_interruptions_with_other_settings_are_exact(tmp_path):
    changes = (
        "optimizer.name=adam",
        "optimizer.lr=0.002",
        "training.eval_test_every=2",
        "rewiring.threshold=exact",
        "data.augment=crop",
        "data.pad=1",
    )
    assert train(tmp_path / "whole", *changes) == 0
    assert rows(tmp_path / "whole", "metrics")[1]["test_accuracy"] != ""
    run = tmp_path / "parts"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 7)
        assert train(run, *changes) == 130
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 9)
        assert main(["train", "--out", str(run), "--resume", *QUIET]) == 130
    assert main(["train", "--out", str(run), "--resume", *QUIET]) == 0
    assert artefacts(run) == artefacts(tmp_path / "whole")


def test_killed_at_random_moments_and_resumed_equals_the_uninterrupted_run(tmp_path):
    """kill -9, eight times, most of them while a checkpoint is being written."""
    driver = Path(__file__).parents[1] / "helpers/kill_and_resume.py"
    root, tests = str(driver.parents[2]), str(driver.parents[1])
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    inherited = filter(None, [os.environ.get("PYTHONPATH")])
    env["PYTHONPATH"] = os.pathsep.join([root, tests, *inherited])
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), "8"],
        env=env,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert artefacts(tmp_path / "killed") == artefacts(tmp_path / "whole")
    kills = [int(line.split()[-1]) for line in done.stdout.splitlines() if "killed at" in line]
    assert len(kills) == 8 and len(set(kills)) > 3, kills


def test_channels_last_is_resumed_exactly(tmp_path):
    # Not narrower: a heap corruption was once seen at 4 channels, cause not established.
    changes = ("model.memory_format=channels_last", "data.augment=crop_flip", "model.width=0.5")
    assert train(tmp_path / "whole", *changes, kind="wrn") == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 5)
        assert train(tmp_path / "parts", *changes, kind="wrn") == 130
    assert main(["train", "--resume", str(tmp_path / "parts"), *QUIET]) == 0
    assert artefacts(tmp_path / "parts") == artefacts(tmp_path / "whole")


@pytest.mark.parametrize("method", ["static", "dense", "thin_dense"])
def test_other_methods_train_and_resume(method, tmp_path):
    changes = (f"method={method}", "training.epochs=2")
    assert train(tmp_path / "whole", *changes) == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 15)
        assert train(tmp_path / "parts", *changes) == 130
    assert main(["train", "--resume", str(tmp_path / "parts"), *QUIET]) == 0
    assert artefacts(tmp_path / "parts") == artefacts(tmp_path / "whole")
    assert len(rows(tmp_path / "whole", "rewires")) == 1


def test_an_infinite_loss_stops_with_iteration_layer_and_checkpoint(tmp_path, capsys):
    run = tmp_path / "run"
    code = train(
        run,
        "optimizer.lr=[[0, 0.1], [1, 1e37]]",
        "optimizer.momentum=0",
        "optimizer.nesterov=false",
        "checkpoint.every_iterations=5",
        "optimizer.l1=0",
        "optimizer.weight_decay=1",
        "rewiring.stop_epoch=1",
    )
    assert code == 3
    message = capsys.readouterr().err
    assert "(epoch 2)" in message and "at iteration 1" in message
    assert "the last good checkpoint is" in message and "step-000000001" in message
    weights, state = Checkpoints(run / "checkpoints").load_latest()
    assert state["position"]["iteration"] in (10, 15)
    assert all(torch.isfinite(t).all() for t in weights.values() if t.is_floating_point())


def test_a_nan_weight_is_named_by_its_layer(tmp_path, monkeypatch, capsys):
    real = loop.Trainer._train_epoch

    def poisoned(self):
        if self.position.epoch == 1:
            self.model.fc3.weight_values.data[3] = float("nan")
        real(self)

    monkeypatch.setattr(loop.Trainer, "_train_epoch", poisoned)
    assert train(tmp_path / "run") == 3
    message = capsys.readouterr().err
    assert "the loss became nan at iteration 13 (epoch 2)" in message
    assert re.search(r"the first non-finite weight is in fc3 \(1 of \d+ weight_values\)", message)


@pytest.mark.parametrize("growth", ["gradient", "random"])
def test_snfs_that_diverges_stops_training(growth, tmp_path, monkeypatch, capsys):
    """Where an infinite weight hides behind a ReLU, the loss stays finite until the rewire."""
    real = loop.Trainer._iteration

    def poisoned(self, images, labels):
        if self.position.iteration == 14:  # a rewire follows it
            weight = self.model.fc1.weight_values
            self.optimizer.state[weight]["momentum_buffer"].fill_(float("inf"))
        return real(self, images, labels)

    monkeypatch.setattr(loop.Trainer, "_iteration", poisoned)
    assert train(tmp_path / "run", "method=snfs", f"rewiring.growth={growth}") == 3
    message = capsys.readouterr().err
    assert "a weight is not finite at a rewire at iteration 15 (epoch 2)" in message
    assert "the first non-finite weight is in fc1" in message and message.count("\n") == 1


def test_resume_refuses_a_rewirer_of_another_version(tmp_path, capsys, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 3)
        assert train(tmp_path / "run") == 130
    monkeypatch.setattr("dsr_kernels.rewiring.rewirer.STATE_VERSION", 99)
    capsys.readouterr()
    assert main(["train", "--resume", str(tmp_path / "run"), *QUIET]) == 2
    message = capsys.readouterr().err
    assert "does not fit: state.pt: rewirer: state_dict: expected version 99, got 3" in message
    assert message.count("\n") == 1


def test_a_buffer_that_is_not_finite_is_no_weight(tmp_path, monkeypatch, capsys):
    real = loop.Trainer._finish_epoch

    def poisoned(self):
        dict(self.model.named_buffers())["bn1.running_var"].fill_(math.inf)
        real(self)

    monkeypatch.setattr(loop.Trainer, "_finish_epoch", poisoned)
    assert train(tmp_path / "run", "training.epochs=1") == 3
    message = capsys.readouterr().err
    assert "a value is not finite at iteration 13" in message
    assert "the first non-finite value is in bn1 (300 of 300 running_var)" in message


def test_resume_refuses_another_recipe(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 3)
        train(run)
    assert main(["train", "--resume", str(run), "--set", "training.epochs=4"]) == 2
    assert "the run has another recipe: training.epochs: 3 and 4" in capsys.readouterr().err
    text = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(text.replace("l1 = 0.0001", "l1 = 0.0002"))
    assert main(["train", "--resume", str(run)]) == 2
    assert "another recipe than recipe.toml: optimizer.l1: 0.0002" in capsys.readouterr().err


def test_weight_decay_and_l1_act_on_values_as_on_dense_weights():
    """One step of the sparse model moves its non-zeros as the dense twin's step moves them."""
    recipe = small("lenet", "optimizer.weight_decay=0.1", "model.sparsity=0.5")
    data = datasets.load(recipe.data)
    sparse, dense = build_model(recipe, data), build_model(recipe, data, sparse=False)
    dense.fc2.load_state_dict({"weight": sparse.fc2.to_dense().detach()})
    mask = dense.fc2.weight != 0
    x = torch.randn(8, 300)
    for model in (sparse, dense):
        optimizer = build_optimizer(recipe, model)
        F.mse_loss(model.fc2(x), torch.zeros(8, 100)).backward()
        optimizer.step()
    expected = dense.fc2.weight[mask]
    torch.testing.assert_close(sparse.fc2.to_dense()[mask], expected, rtol=1e-5, atol=1e-7)


def test_l1_pulls_weights_towards_zero(tmp_path):
    sums = {}
    for l1 in ("0.0", "0.01"):
        train(tmp_path / l1, f"optimizer.l1={l1}", "method=static")
        weights = Checkpoints(tmp_path / l1 / "checkpoints").load_latest()[0]
        sums[l1] = sum(v.abs().sum() for k, v in weights.items() if k.endswith("weight_values"))
    assert sums["0.01"] < 0.8 * sums["0.0"]


def test_epochs_of_the_schedule_become_iterations():
    (every,) = (key for key in DSR.RECIPE if key.name == "every")
    assert every.convert([(0.0, 100.0), (2.5, 200.0)], 550) == [(0, 100), (1375, 200)]


def test_batch_larger_than_the_data_is_refused(tmp_path, capsys):
    assert train(tmp_path / "r", "training.batch_size=2000") == 2
    assert "batch_size: 2000 is more than the 1287 training images" in capsys.readouterr().err
