"""dsr new: a recipe with a word on every key, which trains as it is."""

from __future__ import annotations

import re

import pytest
from helpers.small_runs import refused

from dsr_kernels.cli import main
from dsr_kernels.rewiring import METHODS
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe import new
from dsr_kernels.training.recipe.schema import DENSE, all_keys


def test_every_key_has_a_line_in_its_table():
    found, table = set(), ""
    for line in new.TEMPLATE.read_text().split("\n"):
        if heading := re.match(r"\[(\w+)\]", line):
            table = f"{heading[1]}."
        elif key := re.match(r"(?:# )?(\w+) = ", line):
            found.add(table + key[1])
    assert found == {key for key in all_keys() if key != "name"}  # the file's own


@pytest.mark.parametrize("method", [*METHODS, *DENSE])
def test_a_new_recipe_is_one(method, tmp_path, capsys):
    path = tmp_path / "mine.toml"
    model = "wrn28" if method == "thin_dense" else "timm:resnet50"
    options = ["--method", method, "--model", model, "--data", "a.b:c"]
    assert main(["new", str(path), *options]) == 0
    recipe = recipes.load(str(path))
    assert (recipe.method, recipe.model.name, recipe.data.name) == (method, model, "a.b:c")
    assert recipe.name == "mine" and "dsr train --recipe" in capsys.readouterr().out
    assert all(len(line) <= 100 for line in path.read_text().split("\n"))


@pytest.mark.parametrize(
    "data, files", [("digits", ""), ("folder", " --data-dir DIR"), ("a.b:c", "")]
)
def test_the_command_that_it_names_has_what_the_data_need(data, files, tmp_path, capsys):
    path = tmp_path / "mine.toml"
    assert main(["new", str(path), "--data", data]) == 0
    assert f"dsr train --recipe {path}{files} --out runs/first\n" in capsys.readouterr().out


def test_what_a_comment_shows_is_a_value_that_the_key_takes(tmp_path):
    """Each line that begins with # is tried alone, under a method that takes it."""
    text, tried = new.TEMPLATE.read_text(), 0
    for line in re.findall(r"^# \w+ = .+$", text, re.MULTILINE):
        for method in METHODS:
            shown = new.text_of(method, "timm:a", "x:y").replace(line, line[2:])
            path = tmp_path / "r.toml"
            path.write_text(shown)
            try:
                recipes.load(str(path))
                tried += 1
                break
            except recipes.UsageError as error:
                last = error
        else:
            key = line[2:].partition(" ")[0]
            assert key in ("width", "prune_count") and "expected" in str(last), last
    assert tried > 40


def test_comments_show_what_methods_stand_for(tmp_path):
    """Where methods have values of their own, the line says whose it shows."""
    text = new.TEMPLATE.read_text()
    for key in ("fraction_schedule", "growth"):
        (comment,) = re.findall(rf"^# {key} = .+$", text, re.MULTILINE)
        for method in ("set", "rigl", "snfs"):
            path = tmp_path / "r.toml"
            path.write_text(new.text_of(method, "wrn28", "digits"))
            value = getattr(recipes.load(str(path)).rewiring, key)
            shown = re.search(rf'\bset has "{value}"', comment) if method == "set" else None
            assert shown or (method != "set" and f'{key} = "{value}"' in comment), (method, value)


def test_refusals(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    assert "unknown value 'dsl'" in refused(capsys, "new", str(path), "--method", "dsl")
    assert "unknown value 'resnet5'" in refused(capsys, "new", str(path), "--model", "resnet5")
    assert not path.exists()
    path.write_text("x")
    assert "is there already" in refused(capsys, "new", str(path))
    assert path.read_text() == "x"
    assert "dsr: new: " in refused(capsys, "new", str(tmp_path / "none" / "x.toml"))
