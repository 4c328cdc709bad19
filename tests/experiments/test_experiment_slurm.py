"""Cells as jobs of Slurm, which fake_slurm.py stands in for: what is submitted, how jobs end, and
what is refused. `dsr train` is replaced by fake_train.py.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import fake_slurm
from helpers.fake_cells import (
    AFTER,
    DSR,
    ONE,
    STATIC,
    THREE,
    events,
    interrupt_when,
    jobs,
    once_begun,
    player,
    processes_of,
    release_when_followed,
    table,
)
from helpers.small_runs import refused

from dsr_kernels.experiments.cluster import job
from dsr_kernels.experiments.cluster.queues import SlurmQueue

pytest.importorskip("submitit")
SLURM = ("--launcher", "slurm", "--slurm", "time=5")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of a Slurm that keeps accounts, as long as there is a file `accounts` in it."""
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    home, commands = tmp_path / "slurm", tmp_path / "commands"
    home.mkdir()
    commands.mkdir()
    for name in ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel"):
        path = commands / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_slurm.__file__} {name} "$@"\n')
        path.chmod(0o755)
    (home / "accounts").touch()
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(home))
    monkeypatch.setattr(SlurmJob, "watcher", SlurmInfoWatcher(delay_s=600))  # which knows no job
    monkeypatch.setattr(SlurmQueue, "patience", 0.2)
    monkeypatch.setattr(job, "STOPPED_SECONDS", 5.0)
    return home


@pytest.fixture
def play(tmp_path, monkeypatch, slurm):
    """Makes a function that runs a grid with fake cells as jobs of that Slurm."""
    return lambda grid: player(tmp_path, monkeypatch, grid, *SLURM)


def script(slurm: Path, number: int) -> dict[str, str]:
    """The options of sbatch in the script of a submission."""
    return fake_slurm.options_of(slurm / f"{number}.sh")


def test_ready_cells_are_one_array_and_what_starts_from_them_depends_on_it(play, slurm, capsys):
    run = play(THREE)
    options = ["partition=gpu", "gpus-per-node=1", "setup=export GREETING='module load'"]
    given = [part for option in options for part in ("--slurm", option)]
    assert run("--jobs", "1", *given) == 0
    assert {row["status"] for row in table(run.out).values()} == {"done"}
    first, second = script(slurm, 100), script(slurm, 101)
    assert first["array"] == "0-1%1" and "array" not in second and "dependency" not in first
    assert second["dependency"] in ("afterany:100_0", "afterany:100_1")
    asked = {"time": "5", "partition": "gpu", "gpus-per-node": "1", "job-name": "dsr-out"}
    assert all(found.items() >= asked.items() for found in (first, second))
    assert "export GREETING='module load'\n" in (slurm / "100.sh").read_text()
    shown = capsys.readouterr().out
    assert "3 to run, as jobs of Slurm, 1 at a time" in shown
    assert "submitted 2 cells: jobs 100_0, 100_1" in shown and "1 cells: job 101" in shown
    # The stand-in gives a job one core, wherever it runs.
    assert (run.out / "events").read_text().count(" --threads 1") == 6
    told = events(run.out)
    assert told.index(("end", DSR)) < told.index(("begin", AFTER))
    assert jobs(run.out) == {} and run() == 0 and not (slurm / "102.sh").exists()


def test_a_job_whose_start_failed_says_so_and_is_skipped(play, slurm, capsys):
    run = play(THREE)
    assert run(fail={DSR: "the loss became nan"}) == 1
    rows = table(run.out)
    assert rows[DSR]["error"] == "the loss became nan"
    assert rows[AFTER]["error"] == f"it starts from {DSR} (failed)"
    assert rows[STATIC]["status"] == "done" and not (slurm / "102.sh").exists()
    assert "3 to run, as jobs of Slurm\n" in capsys.readouterr().out  # as many as Slurm starts
    assert script(slurm, 100)["array"] == "0-1%2"


@pytest.mark.parametrize("accounts", [True, False], ids=["accounts", "no accounts"])
def test_ctrl_c_leaves_the_jobs_and_the_same_command_follows_them(play, slurm, capfd, accounts):
    if not accounts:
        (slurm / "accounts").unlink()
    run = play(ONE)
    interrupt_when(run.out, 1, signal.SIGINT)
    assert run(hold=[DSR]) == 130
    shown = capfd.readouterr().err
    assert "1 jobs go on" in shown and "to cancel them: scancel 100" in shown
    release_when_followed(run.out)
    assert run() == 0
    shown = capfd.readouterr()
    assert "1 to run, 1 of them jobs already, as jobs of Slurm" in shown.out
    assert "accounting" not in shown.err and not (slurm / "101.sh").exists()
    assert events(run.out) == [("begin", DSR), ("end", DSR)]


def test_preempted_jobs_save_are_requeued_and_resume(play, slurm):
    run = play(ONE)

    def preempt() -> None:
        """SIGTERM first, as Slurm does; then submitit's signal."""
        (wrapper,) = processes_of(f"submitit.core._submit {run.out}")
        os.kill(wrapper, signal.SIGTERM)
        os.kill(wrapper, signal.SIGUSR2)

    once_begun(run.out, 1, preempt)
    assert run(sleep={DSR: 30.0}) == 0
    assert [what for what, _ in events(run.out)] == ["begin", "stopped-15", "resume", "end"]
    assert "scontrol requeue 100\n" in (slurm / "calls").read_text()
    assert not (slurm / "101.sh").exists()


def test_what_slurm_ended_is_told_in_its_words_and_resumes(play, slurm):
    """The one job is cancelled, the other killed for its memory: neither leaves a result."""
    run = play(ONE.replace('["dsr"]', '["static", "dsr"]'))

    def end() -> None:
        subprocess.run(["scancel", "100_0"], check=True)
        fake_slurm.set_state("100_1", "OUT_OF_MEMORY", slurm)
        os.killpg(int((slurm / "100_1.pid").read_text()), signal.SIGKILL)

    once_begun(run.out, 2, end)
    assert run(sleep={DSR: 30.0, STATIC: 30.0}) == 1
    rows = table(run.out)
    errors = sorted(rows[name]["error"] for name in (DSR, STATIC))
    logs = [run.out / f"jobs/100_{task}_0_log.err" for task in (0, 1)]
    assert errors == [
        f"job 100_0: cancelled (Slurm: CANCELLED); see {logs[0]}",
        f"job 100_1: out of memory (Slurm: OUT_OF_MEMORY); see {logs[1]}",
    ]
    assert all(log.exists() for log in logs) and jobs(run.out) == {}
    events(run.out)
    assert run() == 0
    assert {what for what, _ in events(run.out)} == {"resume", "end"}


def test_a_job_that_neither_sacct_nor_squeue_knows_has_failed(play, slurm):
    (slurm / "accounts").unlink()
    run = play(ONE)

    def lose() -> None:
        subprocess.run(["scancel", "100"], check=True)

    once_begun(run.out, 1, lose)
    assert run(sleep={DSR: 30.0}) == 1
    assert "job 100: unknown to sacct and squeue; see" in table(run.out)[DSR]["error"]


def test_what_sbatch_refuses_ends_the_command_and_keeps_the_experiment(play, slurm, capsys):
    run = play(ONE)
    (slurm / "refuse").write_text("Invalid partition name specified")
    assert run() not in (0, 2)
    shown = capsys.readouterr().err
    assert "sbatch refuses 1 cells: " in shown and "Invalid partition name specified" in shown
    assert "the same command continues it" in shown and shown.count("\n") == 1
    (slurm / "refuse").unlink()
    assert run() == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (["partitoin=gpu", "time=5"], "parameter 'partitoin'; did you mean partition?"),
        ([], "--slurm time: expected, in minutes: --slurm time=240 gives a cell four hours"),
    ],
)
def test_wrong_parameters_are_refused_before_there_is_a_folder(
    options, message, tmp_path, slurm, capsys
):
    grid, out = tmp_path / "g.toml", tmp_path / "out"
    grid.write_text(ONE)
    given = [part for option in options for part in ("--slurm", option)]
    command = ["experiment", str(grid), "--out", str(out), "--launcher", "slurm", *given]
    assert message in refused(capsys, *command)
    assert not out.exists()


@pytest.mark.parametrize("missing", ["sbatch", "srun", "squeue"])
def test_without_slurm_the_missing_command_is_named(missing, tmp_path, slurm, capsys, monkeypatch):
    (tmp_path / "commands" / missing).unlink()
    grid, out = tmp_path / "g.toml", tmp_path / "out"
    grid.write_text(ONE)
    said = refused(capsys, "experiment", str(grid), "--out", str(out), *SLURM)
    assert f"--launcher slurm: {missing} is not on the PATH" in said
    assert not out.exists()


def test_a_percent_sign_in_the_folder_is_refused(tmp_path, slurm, capsys):
    grid, out = tmp_path / "g.toml", tmp_path / "50%"
    grid.write_text(ONE)
    said = refused(capsys, "experiment", str(grid), "--out", str(out), *SLURM)
    assert "Slurm gives % in a path a meaning of its own" in said and not out.exists()
