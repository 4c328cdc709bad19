"""The report: complete, self-contained, remade at will, honest about what is missing."""

import base64
import builtins
import re

import pytest
import torch
from helpers.small_runs import small, train

from dsr_kernels.cli import main
from dsr_kernels.training.data import sets as datasets
from dsr_kernels.training.report import page, plots
from dsr_kernels.training.run.folder import Run
from dsr_kernels.training.run.story import Story
from dsr_kernels.training.setup import build_model, build_optimizer, describe

PLOTS = ["accuracy", "density", "loss", "nonzeros", "pruned", "sparsity", "threshold"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    assert train(folder) == 0
    assert main(["report", str(folder)]) == 0
    return folder


def test_every_plot_is_a_png_beside_the_report_and_in_it(run):
    page = (run / "report.html").read_text()
    inlined = re.findall(r'<img alt="(\w+)" src="data:image/png;base64,([^"]+)"', page)
    assert sorted(name for name, _ in inlined) == PLOTS
    for name, data in inlined:
        raw = (run / "plots" / f"{name}.png").read_bytes()
        assert raw == base64.b64decode(data)
        assert raw.startswith(b"\x89PNG") and len(raw) > 5000


def test_the_page_needs_nothing_else(run):
    page = (run / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert set(re.findall(r'src="(.{5})', page)) == {"data:"}


def test_the_page_tells_the_run(run):
    page = (run / "report.html").read_text()
    results = Run.open(run).read_json("results.json")
    assert f"{results['test_accuracy']:.2%}" in page
    for text in (
        "lenet300-digits",
        "optimizer.l1",
        "rewiring.prune_count",
        "torch",
        "images/s",
        "sparse: 2,510 non-zeros<",
        "this run",
        "peak memory",
    ):
        assert text in page


def test_bytes_are_those_of_the_tensors(run):
    """Parameters, indices and momentum, counted here from the tensors themselves."""
    recipe = small()
    data = datasets.load(recipe.data)
    for sparse in (True, False):
        model = build_model(recipe, data, sparse=sparse)
        optimizer = build_optimizer(recipe, model)
        for parameter in model.parameters():
            parameter.grad = parameter.detach().clone()
        optimizer.step()
        told = describe(model, optimizer)["bytes"]
        assert told["parameters"] == sum(p.nbytes for p in model.parameters())
        assert told["indices"] == sum(b.nbytes for n, b in model.named_buffers() if "indices" in n)
        state = [s["momentum_buffer"] for s in optimizer.state.values()]
        assert told["optimizer"] == sum(t.nbytes for t in state)
        assert told["total"] == told["parameters"] + told["indices"] + told["optimizer"]
        if sparse:
            twin = describe(model, optimizer)["dense_bytes"]
    assert twin == told


def test_without_matplotlib_the_report_says_what_to_install(run, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr("importlib.import_module", lambda name: without(name))
    text = page.write(Run.open(run)).read_text()
    assert "<img" not in text and "test accuracy" in text
    assert "needs matplotlib" in text and "dsr_kernels[train]" in text


def test_a_report_of_an_unfinished_run(tmp_path, capsys):
    folder = tmp_path / "run"
    train(folder, "training.epochs=2")
    (folder / "results.json").unlink()
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(lines[:2]))
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "unfinished run" in page and "epoch 1 of 2" in page
    (folder / "metrics.csv").write_text(lines[0])  # not even one epoch
    assert main(["report", str(folder)]) == 0


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """Gradual pruning of LeNet's 266,200 weights to 5 % of them, 13,310."""
    folder = tmp_path_factory.mktemp("pruned") / "run"
    changes = ["method=gmp", "data.image_size=28", "training.epochs=2", "rewiring.stop_epoch=1.5"]
    assert train(folder, *changes) == 0
    return Run.open(folder)


def test_gradual_pruning_is_told_by_its_end_and_its_start(pruned):
    text = page.write(pruned).read_text()
    assert "95.0%</b><span>sparse at the end: 13,310 non-zeros; 0.0%, 266,200 at the start" in text
    ended = pruned.read_json("results.json")["model"]
    assert ended["nonzeros"] == 13_310
    began = pruned.read_json("run.json")["model"]
    assert began["nonzeros"] == 266_200 and began["dense_bytes"] == ended["dense_bytes"]
    cells = [f'<td class="n">{model["bytes"]["total"]:,}</td>' for model in (began, ended)]
    assert "".join(cells) in text
    times = ended["dense_bytes"]["total"] / ended["bytes"]["total"]
    assert f"{times:.1f}x smaller" in text and times > 8


def test_gradual_pruning_under_way_is_told_by_its_start(pruned, monkeypatch):
    monkeypatch.setattr(
        Run,
        "read_json",
        lambda run, name, read=Run.read_json: None if name == "results.json" else read(run, name),
    )
    text = page.write(pruned).read_text()
    assert "0.0%</b><span>sparse at the start: 266,200 non-zeros<" in text


def test_colours_of_densities_are_centred_on_the_end_and_the_bar_ends_at_100(pruned):
    """The last layer ends at 0.1 %: as far below 5 % as 250 % is above."""
    story = Story.read(pruned)
    last = story.rewires[-1]
    last["nonzeros:fc1"] += last["nonzeros:fc3"] - 1
    last["nonzeros:fc3"] = 1
    axes, bar = plots.density(story).axes
    norm = axes.collections[0].norm
    assert norm(5) == pytest.approx(0.5) and norm(0.1) == pytest.approx(0)
    assert norm(10) - 0.5 == pytest.approx(0.5 - norm(2.5))
    assert bar.get_ylim() == pytest.approx((0.1, 100))
    assert list(bar.get_yticks()) == [0.1, 1, 10, 100]


@pytest.mark.parametrize(
    "method,title,label",
    [
        ("gmp", "Weights pruned at each step", "pruned"),
        ("deepr", "Weights moved in every 100 iterations", "pruned and regrown, sum of 100"),
        ("set", "Weights moved at each rewire", "pruned and regrown"),
    ],
)
def test_the_picture_of_moved_weights_says_what_a_point_is(pruned, method, title, label):
    story = Story.read(pruned)
    story.recipe.method = method
    axes = plots.pruned(story).axes[0]
    assert (axes.get_title(), axes.lines[0].get_label()) == (title, label)


KEEPING = [("dense", 2), ("thin_dense", 2), ("static", 3), ("set", 5)]


@pytest.mark.parametrize("method,plots", KEEPING)
def test_no_map_of_densities_that_never_change(tmp_path, method, plots):
    folder = tmp_path / "run"
    assert train(folder, f"method={method}", "training.epochs=1") == 0
    assert main(["report", str(folder)]) == 0
    assert len(list((folder / "plots").iterdir())) == plots


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_text_from_the_recipe_is_escaped(tmp_path):
    folder = tmp_path / "run"
    train(folder, "training.epochs=1", "description=a <b>bold</b> & claim")
    main(["report", str(folder)])
    assert "a &lt;b&gt;bold&lt;/b&gt; &amp; claim" in (folder / "report.html").read_text()


def test_the_header_says_what_ran_and_a_tile_how_many_values_are_0(run):
    text = (run / "report.html").read_text()
    assert '<p class="lead">lenet300 on digits: dsr, sparsity 0.95, seed 0. ' in text
    model = Run(run).read_json("results.json")["model"]
    assert 0 < model["zeros"] < model["nonzeros"]
    share = f"{model['zeros'] / model['nonzeros']:.2%}"
    label = f"of the non-zeros are exactly 0 at the end: {model['zeros']:,}"
    assert f"<b>{share}</b><span>{label}<" in text


def test_values_that_are_exactly_0_are_counted():
    recipe = small()
    model = build_model(recipe, datasets.load(recipe.data))
    optimizer = build_optimizer(recipe, model)
    assert describe(model, optimizer)["zeros"] == 0
    with torch.no_grad():
        model.fc1.weight_values[:7] = 0
    assert describe(model, optimizer)["zeros"] == 7


def test_the_map_shows_the_last_rewire_even_at_the_end_of_training(run):
    story = Story.read(Run(run))
    story.rewires[-1]["epoch"] = story.last_epoch
    with plots.style.drawing("a test"):
        mesh = plots.density(story).axes[0].collections[0]
    edges = mesh.get_coordinates()[0, :, 0]
    assert len(edges) == len(story.rewires) + 1
    assert edges[-1] - edges[-2] >= (edges[-2] - edges[0]) / 51
