"""Cells as processes: order, failures, signals, and going on after each of them. `dsr train` is
replaced by fake_train.py but in the last test.
"""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from helpers.failing_disk import refuse
from helpers.fake_cells import TESTS, events, interrupt_when, player, table
from helpers.small_runs import LENET, artefacts

from dsr_kernels.cli import main
from dsr_kernels.experiments import attempt, runner

GRID = """
recipe = "lenet300-digits"
methods = ["static", "dsr", "after", "last"]
sparsities = [0.9, 0.95]
seeds = [0]
[method.after]
method = "static"
start.from = "dsr"
start.take = "structure"
[method.last]
method = "static"
start.from = "after"
"""
NAMES = {f"{method}-{s}-s0" for method in ("static", "dsr", "after", "last") for s in (0.9, 0.95)}


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Runs the grid with fake cells."""
    return player(tmp_path, monkeypatch, GRID)


def test_every_cell_runs_once_after_what_it_starts_from(play):
    assert play() == 0
    seen = events(play.out)
    assert [what for what, _ in seen] == ["begin", "end"] * 8  # one at a time
    order = [name for what, name in seen if what == "end"]
    assert set(order) == NAMES
    for sparsity in ("0.9", "0.95"):
        chain = [order.index(f"{m}-{sparsity}-s0") for m in ("dsr", "after", "last")]
        assert chain == sorted(chain)
    assert play() == 0 and events(play.out) == []  # nothing is left to do


def test_jobs_run_side_by_side_and_still_wait_for_each_other(play):
    assert play("--jobs", "3", gather=3) == 0
    running, most = set(), 0
    for what, name in events(play.out):
        if what == "begin":
            running.add(name)
            method, rest = name.split("-", 1)
            assert method not in ("after", "last") or f"dsr-{rest}" not in running
        else:
            running.discard(name)
        most = max(most, len(running))
    assert most == 3


def test_cells_get_their_share_of_the_cores_and_the_options(play, tmp_path):
    assert play("--jobs", "2", "--data-dir", str(tmp_path)) == 0
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    line = (play.out / "events").read_text().splitlines()[0]
    assert f"--threads {share} --data-dir {tmp_path}" in line and "--device" not in line


def test_a_failed_cell_is_reported_its_dependents_skipped_and_the_rest_done(play, capsys):
    assert play(fail={"dsr-0.9-s0": "the loss became nan"}) == 1
    rows = table(play.out)
    status = {name: row["status"] for name, row in rows.items()}
    assert status.pop("dsr-0.9-s0") == "failed"
    assert status.pop("after-0.9-s0") == status.pop("last-0.9-s0") == "skipped"
    assert set(status.values()) == {"done"} and len(status) == 5
    assert rows["dsr-0.9-s0"]["error"] == "the loss became nan"
    assert rows["after-0.9-s0"]["error"] == "it starts from dsr-0.9-s0 (failed)"
    assert rows["last-0.9-s0"]["error"] == "it starts from after-0.9-s0 (skipped)"
    assert "dsr at 0.9, seed 0: failed: the loss became nan" in capsys.readouterr().out
    text = (play.out / "table.md").read_text()
    assert "| dsr | failed | 80.00 |" in text and "the loss became nan" in text
    events(play.out)
    assert play("--report") == 1 and events(play.out) == []

    assert play() == 0  # the failed one continues, what was skipped begins
    began = [event for event in events(play.out) if event[0] != "end"]
    expected = [("resume", "dsr-0.9-s0"), ("begin", "after-0.9-s0"), ("begin", "last-0.9-s0")]
    assert began == expected
    assert {row["status"] for row in table(play.out).values()} == {"done"}


def test_a_cell_that_is_killed_or_says_nothing_is_a_failure_too(play, monkeypatch):
    script = "import os, sys; os.kill(os.getpid(), 9) if 'dsr-0.9-s0' in str(sys.argv) else exit(7)"
    monkeypatch.setattr(runner, "TRAIN", (sys.executable, "-c", script))
    assert play() == 1
    rows = table(play.out)
    assert rows["dsr-0.9-s0"]["error"] == "killed by SIGKILL"
    assert rows["static-0.9-s0"]["error"] == "exit code 7"


def test_a_cell_that_finds_no_room_on_the_disk_is_reported_and_goes_on_later(play, monkeypatch):
    said = "/run/metrics.csv: No space left on device; /run keeps the checkpoint step-0000000006"
    assert play(fail={"dsr-0.9-s0": said}) == 1
    assert table(play.out)["dsr-0.9-s0"]["error"] == said
    events(play.out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        script = "print('epoch 1/20'); exit(1)"  # what went wrong had no room in the log
        patch.setattr(runner, "TRAIN", (sys.executable, "-c", script))
        assert play() == 1
    error = table(play.out)["dsr-0.9-s0"]["error"]
    assert error.startswith("exit code 1; there was no room on the disk to say why in ")
    assert play() == 0
    assert ("resume", "dsr-0.9-s0") in events(play.out)


@pytest.mark.parametrize("name", ["grid.toml.tmp", "failures.json.tmp", "results.csv.tmp"])
def test_an_experiment_goes_on_where_the_disk_was_full(play, name, capsys):
    with pytest.MonkeyPatch.context() as patch:
        refuse(patch, name)
        assert play() == 1
    shown = capsys.readouterr().err
    assert f"{name}: No space left on device; {play.out} keeps every cell" in shown
    assert "the same command continues it" in shown and shown.count("\n") == 1
    assert play() == 0
    assert {row["status"] for row in table(play.out).values()} == {"done"}


def test_an_experiment_that_is_refused_leaves_no_folder(play, tmp_path, capsys):
    play.grid.write_text(GRID.replace("lenet300-digits", "lenet300-mnist"))
    assert play("--data-dir", str(tmp_path / "nowhere")) == 2
    assert "data set mnist not found" in capsys.readouterr().err
    assert not play.out.exists()


def test_a_damaged_list_of_failures_is_named(play, capsys):
    assert play(fail={"dsr-0.9-s0": "x"}) == 1
    for text in ("{", "[1]", '{"a": 3}', "\0"):
        (play.out / "failures.json").write_text(text)
        assert play("--report") == 2
        shown = capsys.readouterr().err
        assert "failures.json: damaged" in shown and "remove it" in shown


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_cell_once_and_the_same_command_goes_on(play, signum, capfd):
    interrupt_when(play.out, 2, signum)
    sleep = {name: 30.0 for name in NAMES}
    assert play("--jobs", "2", sleep=sleep) == 128 + signum
    assert "0 of 8 cells done; the same command continues it" in capfd.readouterr().err
    stopped = [what for what, _ in events(play.out) if what.startswith("stopped")]
    assert stopped == [f"stopped-{signum}"] * 2
    status = [row["status"] for row in table(play.out).values()]
    assert status.count("unfinished") == 2 and status.count("waiting") == 6
    assert play("--jobs", "2") == 0
    began = [what for what, _ in events(play.out) if what != "end"]
    assert began.count("resume") == 2 and began.count("begin") == 6


def test_another_grid_is_refused_naming_cell_and_key(play, capsys):
    assert play(fail={"dsr-0.9-s0": "x"}) == 1
    capsys.readouterr()
    assert play("--set", "training.epochs=5") == 2
    shown = capsys.readouterr().err
    assert "dsr-0.9-s0" in shown and "training.epochs: 20 and 5" in shown
    play.grid.write_text(GRID.replace("[0.9, 0.95]", "[0.9, 0.95, 0.5]"))
    assert play() == 0  # more cells contradict nothing
    assert len(table(play.out)) == 12


def test_a_moved_folder_is_still_the_same_experiment(play, tmp_path):
    assert play() == 0
    moved = tmp_path / "moved"
    play.out.rename(moved)
    assert main(["experiment", str(play.grid), "--out", str(moved)]) == 0


def test_a_second_process_and_a_foreign_folder_are_refused(play, tmp_path, capsys):
    from dsr_kernels.experiments.folder import Folder

    assert play() == 0
    held = Folder(play.out)
    held.lock()
    capsys.readouterr()
    assert play() == 2
    assert "another process is running this experiment" in capsys.readouterr().err
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.tex").write_text("")
    assert main(["experiment", str(play.grid), "--out", str(tmp_path / "foreign")]) == 2
    assert "holds no experiment" in capsys.readouterr().err


def test_a_run_that_an_older_process_still_holds_is_waited_for(play):
    interrupt_when(play.out, 1, signal.SIGINT)
    assert play(sleep={name: 30.0 for name in NAMES}) == 130
    cut = next((play.out / "runs").glob("*/recipe.toml")).parent
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
    code += "print('held', flush=True); time.sleep(1.5)"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(cut / ".lock")], stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    events(play.out)
    assert play() == 0
    assert holder.wait() == 0
    assert ("resume", cut.name) in events(play.out)
    assert {row["status"] for row in table(play.out).values()} == {"done"}


@pytest.mark.slow
def test_killed_with_sigkill_it_continues_to_the_same_result(tmp_path):
    """The real thing: the experiment dies, its cell with it; both go on, bit for bit."""
    grid = tmp_path / "g.toml"
    grid.write_text(
        'recipe = "lenet300-digits"\nmethods = ["copy", "dsr"]\nsparsities = [0.9]\nseeds = [1]\n'
        "set.training.epochs = 8\nset.checkpoint.every_iterations = 1\n"
        '[method.copy]\nmethod = "static"\nstart.from = "dsr"\nstart.take = "structure"\n'
        "training.epochs = 1\n"
    )
    changes = [change for change in LENET if not change.startswith("training.epochs")]
    settings = [part for change in changes for part in ("--set", change)]
    options = ["--out", str(tmp_path / "out"), "--threads", "1"]
    command = [sys.executable, "-m", "dsr_kernels", "experiment", str(grid), *settings, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    run = tmp_path / "out/runs/dsr-0.9-s1"
    child = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 60
    while not list(run.glob("checkpoints/step-00000000[2-9]*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (run / "results.json").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing after iteration" in (run / "log.txt").read_text()
    recipe = str(tmp_path / "out/recipes/dsr-0.9-s1.toml")
    options = ["--quiet", "--no-report", "--threads", "1", "--out", str(tmp_path / "whole")]
    whole = ["train", "--recipe", recipe, *options]
    assert main(whole) == 0
    assert artefacts(run) == artefacts(tmp_path / "whole")
    assert (tmp_path / "out/plots/accuracy.png").read_bytes().startswith(b"\x89PNG")
    began = json.loads((tmp_path / "out/runs/copy-0.9-s1/run.json").read_text())["start"]
    assert began["run"] == str(run)


def test_a_cell_runs_this_package_whatever_its_folder_holds(tmp_path):
    (tmp_path / "dsr_kernels").mkdir()
    (tmp_path / "dsr_kernels" / "__init__.py").write_text("raise ImportError('a source tree')")
    command = [*runner.TRAIN, "--list"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and "lenet300-digits" in result.stdout, result.stderr
