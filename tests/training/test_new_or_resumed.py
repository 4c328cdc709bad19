"""Folders of `dsr train`: which ones begin a run, and which ones go on with theirs."""

import shutil

import pytest
from helpers.small_runs import arguments, refused, train

from dsr_kernels.cli import main
from dsr_kernels.training.run.folder import Run


def test_a_folder_that_holds_something_is_never_touched(capsys, tmp_path):
    run = tmp_path / "run"
    assert train(run, "training.epochs=1") == 0
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    message = refused(capsys, *arguments(run))
    assert f"already holds a run; continue it with `dsr train --resume {run}`" in message
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("important")
    assert "is not empty and holds no run" in refused(capsys, *arguments(other))
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused(capsys, *arguments(tmp_path / "file"))
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "wrong",
    ["training.batch_size=2000", "rewiring.prune_count=99999", "rewiring.initial_threshold=0"],
)
def test_a_folder_refused_for_a_wrong_value_can_be_named_again(capsys, tmp_path, wrong):
    made, given = tmp_path / "made", tmp_path / "given"
    given.mkdir()
    for run in (made, given):
        assert "recipe: " in refused(capsys, *arguments(run, wrong))
    assert not made.exists() and not list(given.iterdir())
    assert train(made, "training.epochs=1") == 0


def test_a_refused_value_removes_nothing_of_a_run_that_has_begun(tmp_path):
    from helpers.small_runs import small

    run = Run.create(tmp_path / "run", small())
    (run.folder / "metrics.csv").write_text("epoch\n")
    run.withdraw()
    assert Run.open(run.folder).recipe() == small()


def test_resuming_a_complete_run_says_so(capsys, tmp_path):
    train(tmp_path / "run", "training.epochs=1")
    assert main(["train", "--resume", str(tmp_path / "run"), "--no-report"]) == 0
    assert "is finished: test accuracy" in capsys.readouterr().out


def test_a_complete_run_can_still_be_compared_with_its_dense_twin(capsys, tmp_path):
    run = tmp_path / "run"
    train(run, "training.epochs=1")
    before = Run.open(run).read_json("results.json")
    kept = {p: p.read_bytes() for p in run.rglob("*") if p.suffix in (".csv", ".safetensors")}
    events = len(list((run / "tensorboard").iterdir()))
    resume = ["train", "--resume", str(run), "--compare-dense"]
    assert main(resume) == 0
    results = Run.open(run).read_json("results.json")
    speeds = results.pop("against_dense")["images_per_second"]
    assert results == before and set(speeds) == {"sparse", "dense_contiguous"}
    shown = capsys.readouterr().out
    assert "training steps: sparse" in shown and "report: " in shown
    assert "Speed against the dense twin" in (run / "report.html").read_text()
    assert {p: p.read_bytes() for p in kept} == kept
    assert len(list((run / "tensorboard").iterdir())) == events
    shutil.rmtree(run / "checkpoints")
    assert "has no checkpoint with its final weights" in refused(capsys, *resume)


def test_resuming_before_the_first_checkpoint_begins_again(tmp_path):
    from helpers.small_runs import artefacts, small

    train(tmp_path / "whole", "training.epochs=1")
    Run.create(tmp_path / "run", small("lenet", "training.epochs=1"))
    assert main(["train", "--resume", str(tmp_path / "run"), "--quiet", "--no-report"]) == 0
    assert artefacts(tmp_path / "run") == artefacts(tmp_path / "whole")


def test_a_run_in_use_is_refused(tmp_path, capsys):
    from helpers.small_runs import small

    run = Run.create(tmp_path / "run", small())
    assert "another process is training" in refused(capsys, "train", "--resume", str(run.folder))
