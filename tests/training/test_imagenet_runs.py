"""Whole runs on a tiny ImageNet: the recipes work, resume is exact, signals spare the workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.image_sets import write_folders, write_shards
from helpers.small_runs import QUIET, artefacts, interrupt_at, rows

from dsr_kernels.cli import main
from dsr_kernels.training.run.checkpoint import Checkpoints
from dsr_kernels.training.run.folder import Run

SMALL = (
    "data.image_size=32",
    "data.workers=2",
    "data.validation=12",
    "model.width=0.1",
    "training.batch_size=4",
    "training.epochs=2",
    "training.eval_batch_size=5",
    "rewiring.every=[[0, 2]]",
    "rewiring.prune_count=500",
)


def arguments(data, out, *changes, recipe="resnet18-imagenet"):
    sets = [part for change in changes for part in ("--set", change)]
    where = ["--data-dir", str(data), "--out", str(out)]
    return ["train", *QUIET, "--recipe", recipe, *where, *sets]


def processes() -> set[str]:
    """The ids of the processes that this one has started."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    # Python's own process for what is shared stays, once any test has started others.
    return {p for p, c in commands.items() if b"python" in c and b"resource_tracker" not in c}


@pytest.fixture
def no_workers_left():
    """Whether a test has left none; other tests of this process may have some."""
    before = processes()
    return lambda: processes() <= before


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    return {"folders": write_folders(root / "folders"), "shards": write_shards(root / "shards")}


@pytest.fixture(scope="module")
def whole(layouts, tmp_path_factory):
    """An uninterrupted run on the folders, without workers."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(arguments(layouts["folders"], run, *SMALL, "data.workers=0")) == 0
    return run


@pytest.mark.parametrize("layout,iteration", [("folders", 3), ("shards", 8)])
def test_resumed_in_mid_epoch_equals_the_uninterrupted_run(
    layout, iteration, layouts, whole, tmp_path, no_workers_left
):
    """Whatever the number of workers and the layout of the files; 6 iterations an epoch."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, iteration)
        assert main(arguments(layouts[layout], run, *SMALL)) == 130
    assert no_workers_left()
    assert main(["train", "--resume", str(run), *QUIET]) == 0
    assert no_workers_left()
    assert artefacts(run) == artefacts(whole)


def test_a_run_is_not_resumed_on_other_files(layouts, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 1)
        assert main(arguments(layouts["folders"], run, *SMALL)) == 130
    other = write_folders(tmp_path / "other", train=4)
    assert main(["train", "--resume", str(run), "--data-dir", str(other), *QUIET]) == 2
    assert "trained on other data: imagenet, 24 training images" in capsys.readouterr().err


def test_top5_is_recorded_and_reported(whole, capsys):
    results = Run.open(whole).read_json("results.json")
    assert results["test_accuracy"] <= results["test_top5"] <= 1
    table = rows(whole, "metrics")
    for row in table:
        assert 0 <= float(row["validation_accuracy"]) <= float(row["validation_top5"]) <= 1
        assert row["test_top5"] == ""
    assert main(["report", str(whole)]) == 0
    page = (whole / "report.html").read_text()
    assert "test top-5 accuracy" in page and "validation top5" in page
    capsys.readouterr()
    assert main(["train", "--resume", str(whole), *QUIET]) == 0
    assert f"(top-5 {results['test_top5']:.2%})" in capsys.readouterr().out


def test_the_papers_recipe_runs_on_a_few_images(layouts, tmp_path, capsys):
    """All of ResNet-50 at 90 %, with N_p = 400,000, on smaller images."""
    changes = (
        "training.epochs=1",
        "training.batch_size=12",
        "data.image_size=64",
        "rewiring.every=[[0, 1]]",
        "training.eval_test_every=1",
    )
    run = tmp_path / "run"
    assert main(arguments(layouts["folders"], run, *changes, recipe="resnet50-imagenet")) == 0
    told = capsys.readouterr().out
    assert "36 images of 3x64x64 (0 validation, 12 test)" in told and "(top-5 " in told
    table = rows(run, "rewires")
    assert len(table) == 4 and len({row["nonzeros"] for row in table}) == 1
    assert int(table[0]["nonzeros"]) > 2_000_000 and int(table[1]["pruned"]) > 0
    assert Run.open(run).read_json("run.json")["model"]["width"] == 1


def test_a_damaged_image_ends_the_run_with_one_sentence(tmp_path, capsys, no_workers_left):
    data = write_folders(tmp_path / "data")
    (data / "train/n07/07_0.JPEG").write_bytes(b"no picture")
    assert main(arguments(data, tmp_path / "run", *SMALL, "data.validation=0")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "07_0.JPEG: not a picture in JPEG or PNG" in said
    assert no_workers_left()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_of_processes_still_saves(signum, layouts, tmp_path):
    """As Ctrl-C on a terminal, or a batch system's end: it reaches the workers, too."""
    run, root = tmp_path / "run", str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dsr_kernels",
            *arguments(layouts["folders"], run, *SMALL, "training.epochs=100000"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        cwd=root,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (run / "metrics.csv").exists() or len(rows(run, "metrics")) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signum)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signum, said
    assert "stopped after iteration" in said and "Traceback" not in said
    assert said.count("saving a checkpoint") == 1
    state = Checkpoints(run / "checkpoints").load_latest()[1]
    assert f"after iteration {state['position']['iteration']} of" in said
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        os.killpg(process.pid, 0)
