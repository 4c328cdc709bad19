"""Grid files: the cells they stand for, in which order, and what is said of a wrong one."""

from pathlib import Path

import pytest

from dsr_kernels.cli import main
from dsr_kernels.errors import UsageError
from dsr_kernels.experiments import grid as grids
from dsr_kernels.training.recipe import load as recipes

RUNS = Path("/out/runs")
HEAD = """
recipe = "lenet300-digits"
methods = ["short", "dense", "static", "dsr"]
sparsities = [0.9, 0.95]
seeds = [0, 3]
"""
TABLES = """
[set]
"training.epochs" = 7
optimizer.momentum = 0.5

[method.short]
method = "static"
training.epochs = 2
start.from = "dsr"
start.take = "structure"
[method.short.at."0.95"]
optimizer.lr = [[0, 0.5], [1, 0.25]]
optimizer.momentum = 0.75
"""


def load(tmp_path, text: str):
    path = tmp_path / "g.toml"
    path.write_text(text)
    return grids.load(str(path))


def test_cells_are_the_product_with_the_settings_of_each(tmp_path):
    cells = {cell.name: cell for cell in load(tmp_path, HEAD + TABLES).cells(RUNS)}
    levels = [f"{method}-{s}" for method in ("short", "static", "dsr") for s in (0.9, 0.95)]
    assert set(cells) == {f"{name}-s{seed}" for name in [*levels, "dense"] for seed in (0, 3)}
    static = cells["static-0.9-s3"].recipe
    assert (static.method, static.model.sparsity, static.seed) == ("static", 0.9, 3)
    assert (static.training.epochs, static.optimizer.momentum) == (7, 0.5)
    assert static.rewiring.record_exploration and not static.start.run
    short = cells["short-0.95-s3"]
    assert (short.recipe.method, short.recipe.training.epochs) == ("static", 2)
    assert short.recipe.optimizer.momentum == 0.75
    assert short.recipe.optimizer.lr == [(0, 0.5), (1, 0.25)]
    assert cells["short-0.9-s3"].recipe.optimizer.momentum == 0.5
    assert short.needs == "dsr-0.95-s3"
    assert short.recipe.start.run == str(RUNS / "dsr-0.95-s3")
    assert short.recipe.start.take == "structure"


def test_what_others_start_from_comes_first_and_seed_follows_seed(tmp_path):
    grid = load(tmp_path, HEAD + TABLES)
    order = [cell.name for cell in grid.cells(RUNS)]
    assert order[:2] == ["dsr-0.9-s0", "dsr-0.95-s0"]
    assert order[-2:] == ["short-0.9-s3", "short-0.95-s3"]
    assert [name[-2:] for name in order] == ["s0"] * 7 + ["s3"] * 7
    for cell in grid.cells(RUNS):
        assert not cell.needs or order.index(cell.needs) < order.index(cell.name)


def test_chains_of_starts_and_dense_ones(tmp_path):
    text = (
        HEAD.replace('"short"', '"b", "a"')
        + """
[method.b]
method = "static"
start.from = "a"
[method.a]
method = "dsr"
start.from = "dense"
"""
    )
    cells = load(tmp_path, text).cells(RUNS)
    names = [cell.name for cell in cells if cell.seed == 0]
    assert names[:3] == ["dense-s0", "a-0.9-s0", "a-0.95-s0"]
    needs = {cell.name: cell.needs for cell in cells}
    assert needs["a-0.95-s3"] == "dense-s3" and needs["b-0.95-s3"] == "a-0.95-s3"


def test_the_command_line_wins(tmp_path):
    cells = load(tmp_path, HEAD + TABLES).cells(RUNS, ["training.epochs=1"])
    assert {cell.recipe.training.epochs for cell in cells} == {1}


def test_the_variant_of_a_method_holds(tmp_path):
    text = HEAD.replace("lenet300-digits", "lenet300-mnist") + TABLES
    cells = {cell.name: cell for cell in load(tmp_path, text).cells(RUNS)}
    assert cells["static-0.9-s0"].recipe.optimizer.weight_decay == 1e-4
    assert cells["short-0.9-s0"].recipe.optimizer.weight_decay == 1e-4
    assert cells["dsr-0.9-s0"].recipe.optimizer.l1 == 1e-4


def test_a_recipe_beside_the_grid(tmp_path):
    recipe = recipes.load("lenet300-digits", ["name=mine"])
    (tmp_path / "own.toml").write_text(recipes.dump(recipe))
    grid = load(tmp_path, HEAD.replace("lenet300-digits", "own.toml").replace('"short", ', ""))
    assert grid.cells(RUNS)[0].recipe.name == "mine"


@pytest.mark.parametrize("name", grids.names())
def test_every_grid_of_the_package_describes_itself_and_has_right_recipes(name):
    grid = grids.load(name)
    assert grid.description
    cells = grid.cells(RUNS)
    levels = sum(
        1 if m.kind in grids.ANY_SPARSITY else len(grid.sparsities) for m in grid.methods.values()
    )
    assert len({cell.name for cell in cells}) == len(cells) == levels * len(grid.seeds)


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("recipe =", "recipes =", "unknown key 'recipes'; did you mean recipe?"),
        ("lenet300-digits", "lenet300-digit", "unknown recipe 'lenet300-digit'; did you mean"),
        ('"dsr"]', '"drs"]', "unknown method 'drs'; did you mean dsr?"),
        ('"short", ', "", r"\[method.short\]: not in methods: 'short'"),
        ("[0.9, 0.95]", "[0.9, 1.0]", "sparsities: expected numbers in"),
        ("[0.9, 0.95]", '"0.9"', "sparsities: expected a list of numbers"),
        ("[0.9, 0.95]", "[0.9, 0.9]", "sparsities: expected each value once"),
        ("[0, 3]", "[0, true]", "seeds: expected a list of whole numbers"),
        ("[0, 3]", "[-1]", "seeds: expected whole numbers from 0"),
        ('at."0.95"', 'at."0.96"', "not one of the sparsities: '0.96'; did you mean 0.95?"),
        ('"training.epochs"', '"training.epoch"', r"\[set\]: unknown key .* training.epochs\?"),
        ("optimizer.lr", "optimizer.rl", r"\[method.short.at.\"0.95\"\]: unknown key"),
        ('"training.epochs" = 7', "seed = 1", "seed cannot be set, since the grid's seeds give it"),
        ('"training.epochs" = 7', "model.sparsity = 0.5", "the grid's sparsities give it"),
        ('"training.epochs" = 7', 'method = "dsr"', "the grid's methods give it"),
        ('start.from = "dsr"', 'start.from = "dsrr"', "unknown method 'dsrr'; did you mean dsr?"),
        ('start.from = "dsr"', 'start.from = "short"', "start from each other: short"),
        ('start.from = "dsr"', 'start.from = "dsr"\nstart.run = "x"', "start.from and start.run"),
        ('method = "static"', 'method = "dense"', "does not depend on the sparsity"),
        ('"static", "dsr"', '"static", "d/sr"', "methods: expected a name of letters"),
        ("seeds =", "seeds", "not a grid in TOML"),
    ],
)
def test_mistakes_are_one_sentence_with_the_closest_name(tmp_path, old, new, words):
    text = HEAD + TABLES
    assert old in text
    with pytest.raises(UsageError, match=words) as error:
        load(tmp_path, text.replace(old, new, 1))
    assert "g" in str(error.value)


def test_a_dense_run_cannot_start_from_one_of_many(tmp_path):
    text = HEAD.replace('"short", ', "") + '[method.dense]\nstart.from = "dsr"\n'
    with pytest.raises(UsageError, match="belongs to no sparsity"):
        load(tmp_path, text)


def test_a_wrong_recipe_names_its_cell(tmp_path):
    grid = load(tmp_path, HEAD + TABLES.replace("[0, 0.5]", "[0, -1]"))
    with pytest.raises(UsageError, match=r"short-0.95-s0: .*optimizer.lr"):
        grid.cells(RUNS)
    with pytest.raises(UsageError, match="the grid's seeds give it"):
        grid.cells(RUNS, ["seed=3"])


def test_the_command_refuses_before_it_makes_anything(tmp_path, capsys):
    out = tmp_path / "out"
    for arguments, words in [
        (["smok"], "unknown grid 'smok'; did you mean smoke?"),
        ([str(tmp_path / "none.toml")], "there is no file"),
        ([], "experiment: expected a grid"),
        (["smoke", "--jobs", "0"], "--jobs: expected at least 1"),
        (["smoke", "--set", "training.epoch=1"], "did you mean training.epochs?"),
        (["smoke", "--report"], "holds no experiment"),
    ]:
        assert main(["experiment", *arguments, "--out", str(out)]) == 2
        shown = capsys.readouterr().err
        assert words in shown and shown.count("\n") == 1
        assert not out.exists()


def test_list_shows_every_grid(capsys):
    assert main(["experiment", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == grids.names()
    assert all(len(line.split()) > 4 for line in lines)
