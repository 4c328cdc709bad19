"""What a run takes over from a finished one: patterns and values, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from helpers.small_runs import QUIET, artefacts, interrupt_at, small, train

from dsr_kernels.cli import main
from dsr_kernels.errors import UsageError
from dsr_kernels.nn import named_sparse_modules
from dsr_kernels.training import take_over
from dsr_kernels.training.data import sets as datasets
from dsr_kernels.training.run.checkpoint import Checkpoints
from dsr_kernels.training.setup import build_model


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("finished")
    assert train(folder / "sparse") == 0
    assert train(folder / "dense", "method=dense", "training.epochs=1") == 0
    assert train(folder / "wrn", "seed=4", kind="wrn") == 0
    return {name: folder / name for name in ("sparse", "dense", "wrn")}


def weights_of(run: Path):
    return Checkpoints(run / "checkpoints").load_latest()[0]


def started(run: Path, take: str, *changes: str, kind: str = "lenet"):
    """A model of the small recipe as it begins, beside the same without ``[start]``."""
    recipe = small(kind, f"start.run={run}", f"start.take={take}", "seed=9", *changes)
    data = datasets.load(recipe.data)
    model, plain = build_model(recipe, data), build_model(recipe, data)
    return model, plain, take_over.take_over(recipe, model, data), data


def positions(layer, weights=None, name=""):
    if weights is None:
        return layer.topology.linear_positions()
    crow, col = weights[f"{name}.crow_indices"].long(), weights[f"{name}.col_indices"]
    rows = torch.arange(len(crow) - 1).repeat_interleave(crow.diff())
    return rows * layer.row_length + col


def test_weights_of_a_sparse_run_are_all_of_it(finished):
    model, _, about, _ = started(finished["sparse"], "weights", "method=static")
    theirs, ours = weights_of(finished["sparse"]), model.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert about["take"] == "weights" and len(about["weights_sha256"]) == 64


def test_weights_of_a_dense_run_make_every_position_active(finished):
    theirs = weights_of(finished["dense"])
    model, _, _, data = started(finished["dense"], "weights")
    ours = model.state_dict()
    for name, layer in named_sparse_modules(model):
        assert layer.nnz == layer.numel
        assert torch.equal(layer.to_dense(), theirs[f"{name}.weight"])
        layer.topology.validate()
    for key in set(ours) & set(theirs):
        assert torch.equal(ours[key], theirs[key])
    assert "bn1.running_mean" in ours
    images = data.normalize(data.test.images[:20])
    dense = build_model(small("lenet", "method=dense"), data)
    dense.load_state_dict(theirs)
    torch.testing.assert_close(model.eval()(images), dense.eval()(images))


def test_zeros_of_a_dense_run_are_active_too(finished):
    model, *_ = started(finished["dense"], "weights")
    layer = dict(named_sparse_modules(model))["fc2"]
    weights = {key: value.clone() for key, value in weights_of(finished["dense"]).items()}
    weights["fc2.weight"][3] = 0.0
    take_over._take_weights(None, model, {"fc2": layer}, weights)
    assert layer.nnz == layer.numel and int((layer.weight_values == 0).sum()) == 300


@pytest.mark.parametrize("kind, source", [("lenet", "sparse"), ("wrn", "wrn")])
def test_structure_is_the_pattern_with_fresh_values(finished, kind, source):
    run = finished[source]
    model, plain, *_ = started(run, "structure", "method=static", kind=kind)
    again, *_ = started(run, "structure", "method=static", kind=kind)
    other, *_ = started(run, "structure", "method=static", "seed=10", kind=kind)
    theirs = weights_of(run)
    for name, layer in named_sparse_modules(model):
        assert torch.equal(positions(layer), positions(layer, theirs, name))
        assert torch.equal(layer.weight_values, again.get_submodule(name).weight_values)
        assert not torch.equal(layer.weight_values, other.get_submodule(name).weight_values)
        assert not torch.isin(layer.weight_values, theirs[f"{name}.weight_values"]).any()
    ours = model.state_dict()
    sparse = tuple(f"{name}." for name, _ in named_sparse_modules(model))
    for key, value in plain.state_dict().items():
        if not key.startswith(sparse):
            assert torch.equal(ours[key], value), key


@pytest.mark.parametrize("kind, source", [("lenet", "sparse"), ("wrn", "wrn")])
def test_structure_and_init_has_the_initial_values_where_there_were_any(finished, kind, source):
    run = finished[source]
    model, _, _, data = started(run, "structure_and_init", "method=static", kind=kind)
    begun = build_model(small(kind, *(["seed=4"] if kind == "wrn" else [])), data)
    fresh, *_ = started(run, "structure", "method=static", kind=kind)
    theirs, kept, drawn = weights_of(run), 0, 0
    for name, layer in named_sparse_modules(model):
        first = begun.get_submodule(name)
        initial = dict(
            zip(positions(first).tolist(), first.weight_values.flatten().tolist(), strict=True)
        )
        assert torch.equal(positions(layer), positions(layer, theirs, name))
        values = layer.weight_values, fresh.get_submodule(name).weight_values
        values = [v.flatten().tolist() for v in values]
        lottery = zip(positions(layer).tolist(), *values, strict=True)
        for position, value, draw in lottery:
            assert value == initial.get(position, draw)
            kept, drawn = kept + (position in initial), drawn + (position not in initial)
    assert kept > 100 and drawn > 100
    ours = model.state_dict()
    sparse = tuple(f"{name}." for name, _ in named_sparse_modules(model))
    for key, value in begun.state_dict().items():
        if not key.startswith(sparse):
            assert torch.equal(ours[key], value), key


def test_fresh_values_have_the_distribution_of_the_initialisation(finished):
    model, *_ = started(finished["wrn"], "structure", "method=static", kind="wrn")
    convs = [layer for _, layer in named_sparse_modules(model) if layer.numel > 2000]
    scaled = torch.cat([c.weight_values / (2 / (9 * c.weight_shape[0])) ** 0.5 for c in convs])
    assert len(scaled) > 1000
    assert scaled.std().item() == pytest.approx(1.0, rel=0.1)
    assert abs(scaled.mean().item()) < 0.1


def test_a_run_tells_what_it_took_and_resumes_without_it(finished, tmp_path):
    changes = [f"start.run={finished['sparse']}", "start.take=structure", "seed=2"]
    assert train(tmp_path / "whole", *changes) == 0
    about = json.loads((tmp_path / "whole/run.json").read_text())["start"]
    assert about["run"] == str(finished["sparse"]) and about["take"] == "structure"
    manifest = finished["sparse"] / "checkpoints/latest/manifest.json"
    files = json.loads(manifest.read_text())["files"]
    assert about["weights_sha256"] == files["weights.safetensors"]["sha256"]
    assert about["data"] == datasets.load(small().data).fingerprint()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 15)
        assert train(tmp_path / "cut", *changes) == 130
        patch.setattr(take_over, "Run", None)  # the checkpoint is all that is needed now
        assert main(["train", "--resume", str(tmp_path / "cut"), *QUIET]) == 0
    assert artefacts(tmp_path / "cut") == artefacts(tmp_path / "whole")


@pytest.mark.parametrize("take", ["weights", "structure", "structure_and_init"])
def test_other_training_images_are_told_and_allowed(take, finished, capsys):
    """An image that the other run trained on may be held out here."""
    usual = datasets.load(small().data).fingerprint()
    *_, about, data = started(finished["sparse"], take, "method=static")
    assert about["data"] == data.fingerprint() == usual
    assert capsys.readouterr().out == ""
    *_, about, data = started(finished["sparse"], take, "method=static", "data.validation=300")
    assert about["data"] == usual != data.fingerprint()
    shown = capsys.readouterr().out
    assert f"{finished['sparse']} was trained on other images ({usual})" in shown
    assert data.fingerprint() in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    "source, take, changes, words",
    [
        (
            "sparse",
            "weights",
            ["data.image_size=12"],
            r"layer fc1: .* \(300, 144\), .* \(300, 64\)",
        ),
        ("sparse", "structure", ["data.image_size=12"], r"layer fc1: .*\(300, 144\)"),
        ("dense", "weights", ["data.image_size=12"], r"layer fc1: .*\(300, 144\).*\(300, 64\)"),
        ("dense", "structure", [], "layer fc1 .* is dense"),
        ("sparse", "structure", ["method=dense"], "method dense has no sparse layers"),
        ("sparse", "weights", ["method=dense"], r"layer fc1: expected weight of shape \(300, 64\)"),
        ("wrn", "weights", [], "has no layer fc1"),
    ],
)
def test_what_does_not_fit_is_one_sentence(finished, source, take, changes, words):
    with pytest.raises(UsageError, match=words) as error:
        started(finished[source], take, *changes)
    assert "\n" not in str(error.value)


def test_a_run_too_sparse_to_prune_is_refused(finished):
    gmp = ("method=gmp", "rewiring.stop_epoch=1")
    with pytest.raises(
        UsageError, match=r"than the \d+ that pruning to .* leaves, .*; start from a dense run"
    ):
        started(finished["sparse"], "weights", *gmp)
    started(finished["sparse"], "weights", *gmp, "model.sparsity=0.99")


def test_a_run_that_is_refused_leaves_no_folder(finished, tmp_path, capsys):
    changes = [f"start.run={finished['sparse']}", "method=gmp", "rewiring.stop_epoch=1"]
    assert train(tmp_path / "new", *changes) == 2
    assert capsys.readouterr().err.startswith("dsr: recipe: start.run: ")
    assert not (tmp_path / "new").exists()


def test_unfinished_and_absent_runs_are_refused(finished, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 3)
        train(tmp_path / "cut")
    for name, words in (("cut", "is not finished"), ("none", "holds no run")):
        capsys.readouterr()
        assert train(tmp_path / "new", f"start.run={tmp_path / name}") == 2
        shown = capsys.readouterr().err
        assert words in shown and shown.count("\n") == 1
        assert not (tmp_path / "new").exists()


def test_an_initialisation_that_no_seed_gives_is_refused(finished, tmp_path):
    changes = [f"start.run={finished['sparse']}", "start.take=structure", "training.epochs=1"]
    assert train(tmp_path / "second", *changes) == 0
    with pytest.raises(UsageError, match="itself started from"):
        started(tmp_path / "second", "structure_and_init")
