"""Cells as jobs of submitit on this machine: order, failures, and coming back to them. `dsr train`
is replaced by fake_train.py but in the last test.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.fake_cells import (
    AFTER,
    DSR,
    ONE,
    STATIC,
    TESTS,
    THREE,
    TRAIN,
    events,
    have_begun,
    interrupt_when,
    jobs,
    once_begun,
    player,
    processes_of,
    release_when_followed,
    table,
    wait_until,
)
from helpers.small_runs import LENET, artefacts, refused

from dsr_kernels.cli import main
from dsr_kernels.experiments.cluster import job, launcher
from dsr_kernels.experiments.cluster.queues import LocalQueue

pytest.importorskip("submitit")


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Makes a function that runs a grid with fake cells as jobs of this machine."""
    monkeypatch.setattr(LocalQueue, "patience", 0.2)
    return lambda grid: player(tmp_path, monkeypatch, grid, "--launcher", "local")


def test_jobs_wait_for_what_they_start_from_and_only_failed_ones_run_again(play, capsys):
    run = play(THREE)
    assert run("--jobs", "2", fail={DSR: "the loss became nan"}) == 1
    rows = table(run.out)
    assert {name: row["status"] for name, row in rows.items()} == {
        DSR: "failed",
        AFTER: "skipped",
        STATIC: "done",
    }
    assert rows[DSR]["error"] == "the loss became nan"
    assert rows[AFTER]["error"] == f"it starts from {DSR} (failed)"
    assert "3 to run, as jobs of this machine, 2 at a time" in capsys.readouterr().out
    assert {name for what, name in events(run.out) if what == "begin"} == {DSR, STATIC}
    assert run("--report") == 1 and events(run.out) == []
    assert run() == 0
    told = events(run.out)
    assert told == [("resume", DSR), ("end", DSR), ("begin", AFTER), ("end", AFTER)]
    assert jobs(run.out) == {} and run() == 0 and events(run.out) == []


def test_a_job_carries_its_code_and_imports_nothing_of_the_package(play):
    run = play(ONE)
    assert run() == 0
    (pickled,) = (run.out / "jobs").glob("*_submitted.pkl")
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb')); "
    code += "assert not {'torch', 'dsr_kernels'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(pickled)], check=True)


def test_ctrl_c_leaves_the_jobs_and_the_same_command_follows_them(play, capfd):
    run = play(ONE)
    interrupt_when(run.out, 1, signal.SIGINT)
    assert run(hold=[DSR]) == 130
    (job_id,) = jobs(run.out).values()
    shown = capfd.readouterr().err
    assert "stopping: the jobs go on" in shown and "0 of 1 cells done; 1 jobs go on" in shown
    assert f"to cancel them: kill {job_id}" in shown
    assert run("--launcher", "processes") == 2
    assert f"jobs of local may still run cells of {run.out} ({job_id})" in capfd.readouterr().err
    release_when_followed(run.out)
    assert run() == 0
    assert "1 to run, 1 of them jobs already" in capfd.readouterr().out
    assert events(run.out) == [("begin", DSR), ("end", DSR)]


def test_after_the_command_was_killed_no_cell_runs_twice(play):
    run = play(ONE)
    code = f"from dsr_kernels.experiments import runner; runner.TRAIN = {TRAIN!r}; "
    code += "import sys; from dsr_kernels.cli import main; main(sys.argv[1:])"
    options = ["experiment", str(run.grid), "--out", str(run.out), "--launcher", "local"]
    plan = {"DSR_FAKE": json.dumps({"hold": [DSR]}), "PYTHONPATH": str(TESTS.parent)}
    child = subprocess.Popen([sys.executable, "-c", code, *options], env={**os.environ, **plan})
    wait_until(lambda: have_begun(run.out, 1) and list(jobs(run.out)) == [DSR])
    child.kill()
    child.wait()
    release_when_followed(run.out)
    assert run() == 0
    assert events(run.out) == [("begin", DSR), ("end", DSR)]


def test_a_job_whose_id_was_lost_is_waited_for_by_the_next_one(play):
    """As where the command was killed between submission and its record."""
    run = play(ONE)
    interrupt_when(run.out, 1, signal.SIGINT)
    assert run(sleep={DSR: 3.0}) == 130
    (run.out / "jobs.json").unlink()
    assert run() == 0
    assert events(run.out) == [("begin", DSR), ("end", DSR)]


def test_a_job_that_is_told_to_go_saves_is_requeued_and_resumes(play):
    run = play(ONE)

    def preempt() -> None:
        """As Slurm does: all processes of the job get SIGTERM, and then submitit's signal."""
        (wrapper,) = processes_of(f"submitit.core._submit {run.out}")
        (train,) = processes_of(f"fake_train.py --recipe {run.out}")
        os.kill(train, signal.SIGUSR2)  # which alone must not end it
        os.kill(train, signal.SIGUSR1)
        time.sleep(0.3)
        os.kill(wrapper, signal.SIGTERM)
        os.kill(wrapper, signal.SIGUSR2)

    once_begun(run.out, 1, preempt)
    assert run(sleep={DSR: 30.0}) == 0
    seen = [what for what, _ in events(run.out)]
    assert seen == ["begin", "stopped-15", "resume", "end"]


def test_a_job_that_gets_sigterm_alone_saves_and_is_not_requeued(play, monkeypatch):
    monkeypatch.setattr(job, "STOPPED_SECONDS", 0.2)
    run = play(ONE)
    once_begun(run.out, 1, lambda: os.kill(int(jobs(run.out)[DSR]), signal.SIGTERM))
    assert run(sleep={DSR: 30.0}) == 1
    assert table(run.out)[DSR]["error"] == "exit code 143"
    assert [what for what, _ in events(run.out)] == ["begin", "stopped-15"]
    assert run() == 0
    assert [what for what, _ in events(run.out)] == ["resume", "end"]


def test_a_job_that_vanishes_is_named_and_its_training_ends_with_it(play):
    run = play(ONE)

    def kill() -> None:
        for words in ("submitit.local._local", "submitit.core._submit"):
            for process in processes_of(f"{words} {run.out}"):
                os.kill(process, signal.SIGKILL)

    once_begun(run.out, 1, kill)
    assert run(sleep={DSR: 30.0}) == 1
    error = table(run.out)[DSR]["error"]
    assert "ended without a result; see " in error and error.endswith("_0_log.err")
    assert run() == 0
    seen = [what for what, _ in events(run.out)]
    assert seen == ["begin", "stopped-15", "resume", "end"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--slurm", "time=5"], "--slurm: expected with --launcher slurm, got it with processes"),
        (["--launcher", "local", "--slurm", "partition=gpu"], "--slurm partition: --launcher loc"),
        (["--launcher", "slurm", "--slurm", "time"], "--slurm: expected key=value, got 'time'"),
        (["--launcher", "slurm", "--slurm", "time=01:00:00"], "--slurm time: expected the minut"),
        (["--launcher", "slurm", "--slurm", "nodes=2"], "--slurm nodes: cannot be given: a cell"),
        (["--launcher", "slurm", "--slurm", "time=1"], "time=1, which is 60 s"),
        (["--launcher", "local", "--slurm", "signal_delay_s=-3"], "expected a number of seconds"),
        (["--launcher", "local", "--slurm", "gpus_per_node=a"], "expected a number of GPUs, got"),
        (["--launcher", "local", "--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (
            ["--launcher", "slurm", "--slurm", "time=5", "--slurm", "time=6"],
            "--slurm time: expected once, got 5 and 6",
        ),
    ],
)
def test_wrong_options_are_refused_before_there_is_a_folder(arguments, message, tmp_path, capsys):
    grid, out = tmp_path / "g.toml", tmp_path / "out"
    grid.write_text(ONE)
    assert message in refused(capsys, "experiment", str(grid), "--out", str(out), *arguments)
    assert not out.exists()


def test_without_submitit_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    grid, out = tmp_path / "g.toml", tmp_path / "out"
    grid.write_text(ONE)
    for name in ("slurm", "local"):
        given = ["experiment", str(grid), "--out", str(out), "--launcher", name]
        assert 'pip install "dsr_kernels[cluster]"' in refused(capsys, *given)
    assert not out.exists()


def test_without_the_flag_submitit_is_not_imported(tmp_path):
    (tmp_path / "g.toml").write_text(ONE)
    code = "import sys; from dsr_kernels.cli import main; main(sys.argv[1:]); "
    code += "assert not {'submitit', 'cloudpickle'} & set(sys.modules)"
    options = ["experiment", str(tmp_path / "g.toml"), "--data-dir", str(tmp_path / "nowhere")]
    options += ["--set", "data.name=mnist", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run([sys.executable, "-c", code, *options], env=environment)
    assert done.returncode == 0


@pytest.mark.slow
def test_a_requeued_training_ends_with_the_same_bits(tmp_path):
    """The real thing: `dsr train` in a job that is told to go in its middle."""
    settings = [part for change in (*LENET, "training.epochs=30") for part in ("--set", change)]
    (tmp_path / "g.toml").write_text(ONE)
    options = ["--out", str(tmp_path / "out"), "--threads", "1", "--launcher", "local"]
    command = [sys.executable, "-m", "dsr_kernels", "experiment", str(tmp_path / "g.toml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    child = subprocess.Popen([*command, *settings, *options], env=environment)
    run = tmp_path / f"out/runs/{DSR}"
    wait_until((run / "metrics.csv").exists)
    (wrapper,) = processes_of(f"submitit.core._submit {tmp_path / 'out'}")
    wait_until(lambda: len((run / "metrics.csv").read_text().splitlines()) > 2)
    os.kill(wrapper, signal.SIGUSR2)
    assert child.wait() == 0
    log = (run / "log.txt").read_text()
    assert "stopped after iteration" in log and "continuing after iteration" in log
    recipe = ["--recipe", str(tmp_path / f"out/recipes/{DSR}.toml")]
    whole = ["--quiet", "--no-report", "--threads", "1", "--out", str(tmp_path / "whole")]
    assert main(["train", *recipe, *whole]) == 0
    assert artefacts(run) == artefacts(tmp_path / "whole")
    assert json.loads((tmp_path / "out/jobs.json").read_text())["jobs"] == {}


@pytest.mark.parametrize(
    "ids,words",
    [
        (["7"], "job 7"),
        (["25872", "25875"], "jobs 25872, 25875"),
        (["1", "3", "4", "8", "9", "11"], "jobs 1, 3, 4, 8 and 2 more"),
        ([f"100_{task}" for task in range(9)], "jobs 100_0 to 100_8"),
    ],
)
def test_jobs_are_named_so_that_their_number_is_plain(ids, words):
    assert launcher._span(ids) == words
