"""Models and data that a recipe names by reference: they train, resume exactly, or are refused."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from helpers import own_parts
from helpers.image_sets import write_folders
from helpers.small_runs import QUIET, artefacts, interrupt_at, refused

from dsr_kernels import densify
from dsr_kernels.cli import main
from dsr_kernels.errors import UsageError
from dsr_kernels.nn import SparseConv2d, named_sparse_modules
from dsr_kernels.training.data import sets, user_sets
from dsr_kernels.training.data.random_items import own_random_numbers
from dsr_kernels.training.data.streams import Share, stream
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.schema import Data
from dsr_kernels.training.setup import build_model

RECIPE = """
[model]
name = "helpers.own_parts:net"
sparsity = 0.7
[data]
name = "helpers.own_parts:points"
validation = 10
workers = 0
[optimizer]
lr = 0.05
[training]
epochs = 2
batch_size = 10
[rewiring]
every = 3
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(RECIPE)
    return path


def arguments(path, out, *changes):
    pairs = [part for change in changes for part in ("--set", change)]
    return ["train", *QUIET, "--recipe", str(path), "--out", str(out), *pairs]


def small(path, *changes):
    return recipes.load(str(path), list(changes))


@pytest.mark.parametrize("first, then", [(0, 2), (2, 0)])
def test_a_run_resumes_exactly_in_the_middle_of_an_epoch(first, then, path, tmp_path, monkeypatch):
    """Whatever an item draws from, and however many workers read."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(arguments(path, whole, "data.workers=2")) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        assert main(arguments(path, cut, "data.workers=2")) == 130
    # The number of workers is the recipe's: here another one reads nevertheless.
    real = user_sets.read
    monkeypatch.setattr(user_sets, "read", lambda items, _: real(items, then))
    assert main(["train", *QUIET, "--resume", str(cut)]) == 0
    assert artefacts(cut) == artefacts(whole)


def test_processes_read_the_parts_of_each_batch_that_one_would():
    data = sets.load(Data(name="helpers.own_parts:points", validation=10, workers=0))
    chunks = torch.randperm(70)[:66].view(6, 11)

    def batches(share):
        settings = Data(name="helpers.own_parts:points", validation=10)
        draw = lambda number: stream(3, "augment", 1, number)  # noqa: E731
        return [
            (x, y) for x, y in data.train.train_batches(settings, chunks, 0, draw, share)
        ], list(data.test.eval_batches(7, share))

    whole, parts = batches(Share()), [batches(Share(rank, 3)) for rank in range(3)]
    for kind in (0, 1):
        for number, (images, labels) in enumerate(whole[kind]):
            shares = [part[kind][number] for part in parts]
            assert torch.equal(torch.cat([share[0] for share in shares]), images)
            assert torch.equal(torch.cat([share[1] for share in shares]), labels)
    again = batches(Share())
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[0], again[0], strict=True))


def test_random_numbers_outside_stay_as_they_were():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with own_random_numbers(7):
        drawn = torch.rand(1)
    assert torch.equal(torch.rand(2), expected)
    with own_random_numbers(7):
        assert torch.equal(torch.rand(1), drawn)


def test_parts_of_the_users_own_and_labels_by_class(path):
    data = sets.load(Data(name="helpers.own_parts:three_parts", validation=0, workers=0))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [80, 20, 30]
    assert data.classes == 3 and data.image_shape == (2, 6, 6) and data.mean is None
    held = sets.load(Data(name="helpers.own_parts:points", validation=30, workers=0)).validation
    labels = torch.tensor(own_parts.points()[0].targets)
    share = torch.bincount(labels) * 30 / 80
    assert (torch.bincount(held.labels) - share).abs().max() < 1
    with pytest.raises(UsageError, match=r"data.validation: .* brings its own validation part"):
        sets.load(Data(name="helpers.own_parts:three_parts", validation=5))


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("no_such.module:f", {}, r"data.name: there is no module no_such in .* PYTHONPATH"),
        ("helpers.own_parts:point", {}, r"data.name: helpers.own_parts has no 'point'"),
        ("helpers.own_parts:CLASSES", {}, r"expected a function or a class, got .* of type int"),
        ("helpers.own_parts:points", {"counts": 3}, r"'counts'; set data.arguments"),
        ("helpers.own_parts:awkward", {"kind": "one"}, r"to give Datasets \(train, test\) or "),
        (
            "helpers.own_parts:awkward",
            {"kind": "stream"},
            r"training part: expected a Dataset",
        ),
        ("helpers.own_parts:awkward", {"kind": "empty"}, r"training part: expected at least one"),
        ("helpers.own_parts:broken", {}, r"data.name failed: ZeroDivisionError: as it is"),
        ("helpers.own_parts:unlabelled", {}, r"number of classes is not known; set data.classes"),
    ],
)
def test_data_that_are_none_are_refused(name, arguments, message):
    with pytest.raises(UsageError, match=message):
        sets.load(Data(name=name, arguments=arguments, validation=0))
    if name.endswith("unlabelled"):
        assert sets.load(Data(name=name, classes=4, validation=9)).classes == 4


@pytest.mark.parametrize(
    "kind, message",
    [
        ("error", "item 7 cannot be read: OSError: the disk said no"),
        ("label", "item 7: expected a label from 0 to 2, got 3"),
        ("half label", "item 7: expected a whole number as the label, got a value of type float"),
        ("bytes", "item 7: expected an input tensor of float32"),
        ("shape", "item 7: expected an input (2, 6, 6) of torch.float32 as the first one, got (2"),
        ("alone", "item 7: expected (input, label), got a tensor (2, 6, 6)"),
    ],
)
def test_an_item_that_is_none_ends_the_run_in_one_sentence(kind, message, path, tmp_path, capfd):
    workers = int(kind in ("error", "label"))
    changes = ["data.name=helpers.own_parts:awkward", f"data.arguments={{kind='{kind}'}}"]
    assert main(arguments(path, tmp_path / "run", *changes, f"data.workers={workers}")) == 2
    said = capfd.readouterr().err.splitlines()
    assert said[-1].startswith("dsr: data set helpers.own_parts:awkward, training part: ")
    assert message in said[-1]
    assert any("Traceback" in line for line in said) == (kind == "error")


@pytest.mark.parametrize(
    "name, message",
    [
        ("nowhere:f", "model.name: there is no module nowhere"),
        ("helpers.own_parts:no_module", "to give a torch.nn.Module, got int"),
        ("helpers.own_parts:broken", "failed: ZeroDivisionError: as it is"),
        ("helpers.own_parts:narrow", "narrow of an input (2, 2, 6, 6) failed: RuntimeError"),
        ("helpers.own_parts:wrong_size", "one tensor (2, 3), a number for each class, got (2, 7)"),
        ("helpers.own_parts:TwoHeads", "one tensor (10, 3), a number for each class, got tuple"),
    ],
)
def test_a_model_that_is_none_is_refused(name, message, path, tmp_path, capsys):
    changes = [f"model.name={name}", "data.workers=0", "model.preset=all"]
    assert main(arguments(path, tmp_path / "run", *changes)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("dsr: recipe: model.name") and message in said


@pytest.mark.parametrize(
    "changes, message",
    [
        (["model.width=2"], "model.width: is for wrn28, .*, expected 0 for helpers.own_parts:net"),
        (["method=thin_dense"], "thin_dense needs a model with a width"),
        (["model.name=wrn28", "model.arguments={a=1}"], "model.arguments: wrn28 takes none"),
        (["model.name=wrn28", "model.keep=magnitude"], "weights of wrn28 are drawn anew"),
        (["model.overrides={'3'=2}"], r"overrides: 3: expected a sparsity in \[0, 1\), got 2"),
        (["method=gmp", "model.overrides={'3'=0.5}"], "overrides: method gmp prunes all layers to"),
        (["model.keep=magnitude", "model.granularity=kernel"], "whole kernels are kept at random"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(changes, message, path):
    with pytest.raises(UsageError, match=message):
        small(path, *changes)


def test_sparsifys_arguments_are_keys(path):
    recipe = small(
        path,
        "model.exclude=['0']",
        "model.overrides={'3'=0.5}",
        "model.block_size=4",
        "model.preset=all",
        "model.arguments={width=16}",
    )
    data = sets.load(recipe.data)
    model = build_model(recipe, data)
    sparse = dict(named_sparse_modules(model))
    assert list(sparse) == ["3", "7"] and isinstance(sparse["3"], SparseConv2d)
    assert sparse["3"].nnz == 16 * 16 * 9 // 2 and sparse["3"].block_size == 4
    assert sparse["7"].block_size == 1  # three outputs
    same = build_model(recipe, data)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True)
    )
    largest = build_model(small(path, "model.keep=magnitude"), data)
    dense = build_model(small(path, "method=dense"), data).get_submodule("3").weight
    kept = densify(largest).get_submodule("3").weight
    assert torch.equal(kept[kept != 0], dense[kept != 0])
    assert dense[kept == 0].abs().max() <= kept[kept != 0].abs().min()
    safe = build_model(small(path), data)  # the stem and the head are dense
    assert list(dict(named_sparse_modules(safe))) == ["3"]
    with pytest.raises(UsageError, match=r"recipe: model.exclude: 'conv9' fits no convolution"):
        build_model(small(path, "model.exclude=['conv9']"), data)


def test_models_of_this_package_take_these_keys_too():
    changes = ["model.exclude=['fc1']", "model.overrides={'fc2'=0.5}", "data.image_size=0"]
    recipe = recipes.load("lenet300-digits", changes)
    model = build_model(recipe, sets.load(recipe.data))
    assert {name: m.nnz for name, m in named_sparse_modules(model)} == {"fc2": 15000, "fc3": 50}
    with pytest.raises(
        UsageError, match=r"model.preset: lenet300 leaves dense what the paper does"
    ):
        recipes.load("lenet300-digits", ["model.preset=all"])
    wide = recipes.load("wrn28_2-digits", ["model.width=0.25", "model.overrides={'*.conv2'=0.5}"])
    model = build_model(wide, sets.load(wide.data))
    plain = build_model(recipes.load("wrn28_2-digits", ["model.width=0.25"]), sets.load(wide.data))
    names = [list(dict(named_sparse_modules(m))) for m in (model, plain)]
    assert names[0] == names[1]


def test_other_shapes_than_images(path, tmp_path):
    shape = ["data.arguments={shape=[9]}", "model.name=helpers.own_parts:perceptron"]
    assert main(arguments(path, tmp_path / "run", *shape)) == 0
    assert main(arguments(path, tmp_path / "lenet", shape[0], "model.name=lenet300")) == 0
    data = sets.load(small(path, *shape).data)
    with pytest.raises(UsageError, match=r"wrn28 is for images \[C, H, W\] of floats, .* \(9,\)"):
        build_model(small(path, shape[0], "model.name=wrn28"), data)
    with pytest.raises(UsageError, match="memory_format: channels_last is for images"):
        build_model(small(path, *shape, "model.memory_format=channels_last"), data)


def test_an_object_with_logits_is_fine(path, tmp_path):
    own = "model.name=helpers.own_parts:WithLogits"
    assert main(arguments(path, tmp_path / "run", own, "model.preset=all")) == 0
    with pytest.raises(UsageError, match=r"recipe: model: the model has no .*preset='all' leaves"):
        build_model(small(path, own), sets.load(small(path, own).data))


def test_a_folder_of_pictures(path, tmp_path, capsys):
    data = write_folders(tmp_path / "pictures", classes=3, train=5, val=2)
    changes = ["data.name=folder", "data.image_size=16", "data.validation=3"]
    changes += ["data.augment=resized_crop_flip", "training.batch_size=4"]
    command = [*arguments(path, tmp_path / "run", *changes), "--data-dir", str(data)]
    assert main(command) == 0
    assert "data set folder not found" in refused(
        capsys, *arguments(path, tmp_path / "none", "data.name=folder")
    )


def test_models_of_timm_are_made_for_the_data(path, monkeypatch):
    made = {}

    def create_model(name, **given):
        made.update(given, name=name)
        return own_parts.net(given["num_classes"], given["in_chans"])

    fake = types.SimpleNamespace(
        create_model=create_model,
        is_model=lambda n: n == "resnet50",
        list_models=lambda: ["resnet50"],
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    changes = ["model.name=timm:resnet50.a1_in1k", "model.arguments={drop_rate=0.5}"]
    build_model(small(path, *changes), sets.load(small(path).data))
    assert made == {"name": "resnet50.a1_in1k", "num_classes": 3, "in_chans": 2, "drop_rate": 0.5}
    with pytest.raises(UsageError, match=r"timm has no 'resnet5'; did you mean resnet50"):
        build_model(small(path, "model.name=timm:resnet5"), sets.load(small(path).data))
