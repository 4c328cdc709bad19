"""One flipped bit anywhere in a run's folder: the file is named, or the run ends with its bytes."""

import shutil

import pytest
import torch
from helpers.small_runs import QUIET, artefacts, interrupt_at, refused, rows, train

from dsr_kernels.cli import main
from dsr_kernels.errors import UsageError
from dsr_kernels.training.run.checkpoint import STATE, Checkpoints
from dsr_kernels.training.run.csv_files import line_sums, verify
from dsr_kernels.training.run.folder import Run

CHANGES = ("training.epochs=2", 'description=Dünn, "locker" und dicht')
FILES = [
    "recipe.toml",
    "run.json",
    "metrics.csv",
    "rewires.csv",
    "timings.csv",
    "checkpoints/latest/manifest.json",
    "checkpoints/latest/recipe.toml",
    "checkpoints/latest/state.pt",
    "checkpoints/latest/weights.safetensors",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, and the same stopped behind iteration 20 of 24."""
    base = tmp_path_factory.mktemp("runs")
    assert train(base / "whole", *CHANGES) == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 20)
        assert train(base / "half", *CHANGES) == 130
    return base


def copy(runs, kind, tmp_path):
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    return shutil.copytree(runs / kind, tmp_path / "run", symlinks=True)


def flip(path, place, bit):
    """Flips a bit of the byte at `place`, a share of the file's length."""
    raw = bytearray(path.read_bytes())
    raw[int(place * len(raw))] ^= 1 << bit
    path.write_bytes(raw)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_named_or_harmless(runs, name, tmp_path, capsys):
    expected = artefacts(runs / "whole")
    for place in (0.0, 0.04, 0.37, 0.71, 0.999999):
        for bit in (0, 7):
            run = copy(runs, "half", tmp_path)
            flip(run / name, place, bit)
            capsys.readouterr()
            code = main(["train", "--resume", str(run), *QUIET])
            shown = capsys.readouterr().err
            if code:
                assert code == 2 and shown.count("\n") == 1, (place, bit, shown)
                file = (run / name).resolve()
                assert file.name in shown or file.parent.name in shown, (place, bit, shown)
            else:
                assert artefacts(run) == expected, (place, bit)


@pytest.mark.parametrize("name", [*FILES[:5], "results.json"])
def test_a_flipped_bit_in_a_finished_run_is_named(runs, name, tmp_path, capsys):
    for place in (0.3, 0.6, 0.95):
        run = copy(runs, "whole", tmp_path)
        flip(run / name, place, 0)
        code = main(["train", "--resume", str(run), *QUIET])
        shown = capsys.readouterr().err
        if name == "run.json" and not code:  # nothing reads it
            with pytest.raises(UsageError, match=r"run\.json: (not valid JSON|damaged)"):
                Run.open(run).read_json(name)
        else:
            assert code == 2 and f"{run / name}: " in shown and shown.count("\n") == 1, shown


@pytest.mark.parametrize("name", ["metrics", "rewires", "timings"])
def test_a_damaged_table_is_named_with_its_line_and_can_be_left_behind(
    runs, name, tmp_path, capsys
):
    run = copy(runs, "half", tmp_path)
    lines = (run / f"{name}.csv").read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace("1", "7", 1) if "1" in lines[1] else "9" + lines[1][1:]
    (run / f"{name}.csv").write_text("".join(lines))
    before = {path: path.read_bytes() for path in run.glob("*.csv")}
    message = refused(capsys, "train", "--resume", str(run), *QUIET)
    assert f"{name}.csv: damaged: line 2 is not what the run wrote, it reads " in message
    assert "or remove it: the run then goes on" in message
    assert {path: path.read_bytes() for path in run.glob("*.csv")} == before
    (run / f"{name}.csv").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert f"{name}.csv is gone: it begins anew" in capsys.readouterr().out
    new, old = rows(run, name), rows(runs / "whole", name)
    if name == "rewires":  # the pattern at the checkpoint comes first
        assert new[0]["iteration"] == "20" and new[0]["pruned"] == ""
        assert new[0]["nonzeros:fc1"] == old[-1]["nonzeros:fc1"]
    elif name == "metrics":
        assert new == old[1:]
    weights = "checkpoints/latest/weights.safetensors"
    assert artefacts(run)[weights] == artefacts(runs / "whole")[weights]


def test_a_damaged_recipe_is_put_back_from_the_checkpoint(runs, tmp_path, capsys):
    run = copy(runs, "half", tmp_path)
    text = (run / "recipe.toml").read_text()
    for damage, message in (
        (text.replace("locker", "lockes"), "recipe.toml: damaged: it is not what the run began"),
        (
            text.replace("l1 = 0.0001", "l1 = 0.0003"),
            "another recipe than recipe.toml: optimizer.l1",
        ),
        (text.replace("[model]", "[model"), "not a recipe in TOML"),
    ):
        (run / "recipe.toml").write_text(damage)
        shown = refused(capsys, "train", "--resume", str(run), *QUIET)
        assert message in shown
    kept = Checkpoints(run / "checkpoints").steps()[-1] / "recipe.toml"
    assert f"the checkpoint's own copy is {kept}: put it back to go on" in shown
    shutil.copy(kept, run / "recipe.toml")
    assert main(["train", "--resume", str(run), *QUIET]) == 0
    assert artefacts(run) == artefacts(runs / "whole")


def test_a_damaged_json_file_is_written_again(runs, tmp_path, capsys):
    run = copy(runs, "whole", tmp_path)
    for name in ("results.json", "run.json"):
        before = Run.open(run).read_json(name)
        flip(run / name, 0.5, 1)
        (run / "results.json").touch()
        with pytest.raises(UsageError, match=f"or remove it: `dsr train --resume {run}`"):
            Run.open(run).read_json(name)
        (run / name).unlink()
        (run / "results.json").unlink(missing_ok=True)
        assert main(["train", "--resume", str(run), *QUIET]) == 0
        assert set(Run.open(run).read_json(name)) == set(before)
    assert artefacts(run) == artefacts(runs / "whole")


def test_a_checkpoint_of_an_older_version_goes_on_with_a_word(runs, tmp_path, capsys):
    """It has no checksums of the tables and no copy of the recipe."""
    run = copy(runs, "half", tmp_path)
    store = Checkpoints(run / "checkpoints", keep=1)
    weights, state = store.load_latest()
    del state["sums"]
    shutil.rmtree(run / "checkpoints")
    store.save(20, weights, state)
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text[: text.rindex(",")] + "\n}")
    assert main(["train", "--resume", str(run), *QUIET]) == 0
    assert "an older version wrote the checkpoint" in capsys.readouterr().out
    assert artefacts(run) == artefacts(runs / "whole")
    assert set(torch.load(store.steps()[-1] / STATE)["sums"]) == {"metrics", "rewires", "timings"}


def test_sums_tell_the_first_line_that_differs(tmp_path):
    raw = b"a,b\n1,2\n3,4\n5,6\n"
    path, sums = tmp_path / "t.csv", torch.tensor(line_sums(raw))
    assert len(sums) == 4 and len(set(sums.tolist())) == 4
    assert not verify(path, len(raw), sums)
    path.write_bytes(raw + b"7,8\nhalf a ro")
    assert verify(path, len(raw), sums)
    for damage, line in ((b"a;b", 1), (b"3\n4", 3), (b"5,6x\n", 4), (b"\xff,2", 2)):
        start = {1: 0, 2: 4, 3: 8, 4: 12}[line]
        path.write_bytes(raw[:start] + damage + raw[start + len(damage) :] + b"\n" * 5)
        with pytest.raises(UsageError, match=rf"t\.csv: damaged: line {line} is not what"):
            verify(path, len(raw), sums)
    path.write_bytes(raw[:-1])
    with pytest.raises(UsageError, match=r"does not belong to the checkpoint \(15 bytes"):
        verify(path, len(raw), sums)


def test_a_checksum_whose_name_is_damaged_is_seen(runs, tmp_path):
    run = copy(runs, "whole", tmp_path)
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace('"sha256"', '"sha257"'))
    with pytest.raises(UsageError, match="damaged"):
        Run.open(run).read_json("run.json")
