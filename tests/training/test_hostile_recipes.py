"""Hostile values of every key of a recipe: each is taken, or refused in one sentence.

What is refused leaves no folder behind. Nothing here trains, but for the largest numbers.
"""

from pathlib import Path

import pytest
from helpers.small_runs import arguments, refused, train

from dsr_kernels.cli import main
from dsr_kernels.errors import Interrupted, UsageError
from dsr_kernels.rewiring import METHODS
from dsr_kernels.training.data import limits
from dsr_kernels.training.loop import Trainer
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.schema import all_keys

NUMBERS = ["1e308", "-1e308", "1e37", "-1e-320", "nan", "-inf", "1e400", "-1"]
NUMBERS += [str(2**31), str(2**63 - 1), str(2**63), "1" + "0" * 70, "0x" + "f" * 5000, "9" * 5000]
SCHEDULES = ["[[0, 1e308]]", "[[0, 1], [1e308, 2]]", f"[[0, 1{'0' * 70}]]", "[[0]]", "[[0, true]]"]
SHAPES = ["{}", "[]", "''", "1979-05-27", "[" * 3000, "{a = " * 3000]
TEXTS = ["x" * 300, "a/" * 3000, "a\0b", "\udcff", "line\nline", "~" * 10**6]
TEXTS += ["['\udcff']", "{ a = '\udcff' }", "{ '\udcff' = 1 }"]
HOSTILE = NUMBERS + SCHEDULES + SHAPES + TEXTS
OWNERS = {key.name: name for name, method in METHODS.items() for key in method.RECIPE}


@pytest.fixture
def no_training(monkeypatch):
    """Ends a run where its first iteration would begin."""

    def train(self):
        raise Interrupted("training would begin", 99)

    monkeypatch.setattr(Trainer, "train", train)


@pytest.mark.parametrize("key", all_keys())
def test_a_hostile_value_is_taken_or_refused_in_one_sentence(key, tmp_path, capsys, no_training):
    method = OWNERS.get(key.removeprefix("rewiring."), "dsr")
    for value in HOSTILE:
        out = tmp_path / "made" / "run"
        code = main(arguments(out, f"method={method}", f"{key}={value}"))
        shown = capsys.readouterr().err
        assert code in (2, 99), (value[:50], shown)
        assert shown.startswith("dsr: ") and shown.count("\n") == 1, (value[:50], shown)
        assert len(shown) < 20_000 or value in shown
        if code == 99:
            assert (out / "metrics.csv").exists()
            out.rename(tmp_path / f"taken-{len(list(tmp_path.iterdir()))}")
            (tmp_path / "made").rmdir()
        assert not (tmp_path / "made").exists(), value[:50]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("key", ["lr", "weight_decay", "l1"])
def test_the_largest_numbers_end_in_a_loss_that_is_not_finite(key, optimizer, tmp_path, capsys):
    changes = (f"optimizer.{key}=1e37", f"optimizer.name={optimizer}", "training.epochs=1")
    assert train(tmp_path / "run", *changes) in (0, 3)
    assert "Traceback" not in capsys.readouterr().err


def test_a_model_or_a_batch_that_memory_cannot_hold_is_refused(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(limits, "memory_bytes", lambda: 2**30)
    message = refused(capsys, *arguments(out, "model.width=1000"))
    assert "recipe: the model of" in message and "a smaller model.width" in message
    monkeypatch.setattr(limits, "memory_bytes", lambda: 200_000)
    message = refused(capsys, *arguments(out, "training.batch_size=1000"))
    assert "recipe: a batch of images takes" in message and not out.exists()


def test_a_schedule_keeps_whole_iterations_exactly():
    assert recipes.load("lenet300-digits", [f"rewiring.every={2**53}"]).rewiring.every
    with pytest.raises(UsageError, match="values up to 9007199254740992"):
        recipes.load("lenet300-digits", [f"rewiring.every={2**53 + 2}"])
    with pytest.raises(UsageError, match=r"training\.epochs: expected a value at most 2147483647"):
        recipes.load("lenet300-digits", [f"training.epochs={10**30}"])


@pytest.mark.parametrize("wrong", ["x" * 300, "file/below", "loop", "a\0b", "y" * 5000])
def test_a_path_that_cannot_be_looked_up_is_one_sentence(wrong, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("loop").symlink_to("loop")
    for command in (
        arguments(Path(wrong)),
        arguments(Path("new/run"), f"start.run={wrong}"),
        ["train", "--resume", wrong],
        ["report", wrong],
        ["train", "--recipe", f"{wrong}.toml", "--out", "new"],
        ["experiment", f"{wrong}.toml"],
        ["experiment", "mechanism", "--out", wrong],
    ):
        refused(capsys, *command)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path, capsys):
    refused(capsys, *arguments(tmp_path / "a/b" / ("x" * 300)))
    refused(capsys, *arguments(tmp_path.joinpath(*["y" * 200] * 19)))
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_recipe_are_one_sentence(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    command = ("train", "--recipe", str(path), "--out", str(tmp_path / "run"))
    for raw, message in (
        (b"seed = " + b"9" * 5000, "not a recipe in TOML"),
        (b"a = " + b"[" * 3000, "brackets lie too deep"),
        (b"\xff\xfe", "not a recipe in TOML"),
        (b"#" * 2**21, "expected at most 1,048,576 bytes, got 2,097,152"),
        (b'optimizer = 3\n[variant.dsr.optimizer]\nlr = 1', "expected a table [optimizer], got 3"),
    ):  # fmt: skip
        path.write_bytes(raw)
        assert message in refused(capsys, *command)
        assert message.replace("recipe", "grid") in refused(capsys, "experiment", str(path)) or (
            b"variant" in raw
        )
    path.write_text("optimizer = 3")
    assert "expected a table [optimizer]" in refused(capsys, *command, "--set", "optimizer.lr=1")
