"""presets: which layers stay dense unless the caller says more, and what summary says of it."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

from dsr_kernels import densify, named_sparse_modules, sparsify, summary


class Inverted(nn.Module):
    """A block of a mobile network, with a shortcut of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.project = nn.Conv2d(32, 8, 1)
        self.shortcut = nn.Conv2d(channels, 8, 1)

    def forward(self, x):
        y = self.project(self.depthwise(self.expand(x)).relu())
        return y + self.shortcut(x)


def mobile() -> nn.Module:
    parts = {
        "stem": nn.Conv2d(3, 8, 3, padding=1),
        "blocks": nn.Sequential(Inverted(8), Inverted(8)),
        "pool": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "head": nn.Linear(8, 5),
    }
    return nn.Sequential(OrderedDict(parts))


def dense_names(model: nn.Module) -> set[str]:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}


def note_of(model: nn.Module, name: str) -> str:
    (found,) = (layer.note for layer in summary(model).layers if layer.name == name)
    return found


DEPTHWISE = {"blocks.0.depthwise", "blocks.1.depthwise"}
KEPT = {
    "safe": {"stem", "head"} | DEPTHWISE,
    "paper": {"stem", "blocks.0.shortcut", "blocks.1.shortcut"} | DEPTHWISE,
}


@pytest.mark.parametrize("preset", KEPT)
def test_what_each_preset_leaves_dense(preset):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse = sparsify(mobile(), 0.5, preset=preset)
    assert dense_names(sparse) == KEPT[preset]
    notes = {layer.name: layer.note for layer in summary(sparse).layers if not layer.sparse}
    assert notes["stem"] == f"the stem: preset={preset!r}"
    assert notes["blocks.1.depthwise"] == f"depthwise: preset={preset!r}"
    assert sparse(torch.randn(2, 3, 6, 6)).shape == (2, 5)


def test_safe_is_the_default_and_all_names_what_depthwise_layers_lose():
    assert dense_names(sparsify(mobile())) == KEPT["safe"]
    with pytest.warns(UserWarning, match="depthwise, and .* of its 32 output channels") as found:
        sparse = sparsify(mobile(), 0.9, preset="all")
    assert dense_names(sparse) == set()
    assert len(found) == 2
    lost = int((sparse.blocks[0].depthwise.crow_indices.diff() == 0).sum())
    assert lost > 0
    note = note_of(sparse, "blocks.0.depthwise")
    assert note == f"{lost} of 32 output channels have no weight"


def test_a_caller_says_more_than_a_preset():
    sparse = sparsify(mobile(), 0.9, exclude=["blocks.0"], overrides={"head": 0.5})
    assert "head" not in dense_names(sparse)
    assert sparse.head.nnz == 20
    assert {"stem", "blocks.0.expand", "blocks.1.depthwise"} < dense_names(sparse)
    note = note_of(sparse, "blocks.0.depthwise")
    assert note == "excluded by 'blocks.0'"


def test_neither_a_layer_nor_a_model_without_a_head_has_one():
    assert dense_names(sparsify(nn.Linear(8, 8))) == set()
    headless = nn.Sequential(Inverted(8), Inverted(8))
    assert dense_names(sparsify(headless, 0.5)) == {"0.expand", "0.depthwise", "1.depthwise"}
    mlp = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    assert dense_names(sparsify(mlp)) == {"2"}
    assert dense_names(sparsify(mlp, preset="paper")) == set()
    parts = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), mlp)
    assert dense_names(sparsify(parts)) == {"1.2"}  # two nn.Sequential are no repeated blocks


class Parts(nn.Module):
    """A body of two blocks, then whatever parts it is given."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.ModuleList([Head(), Head()])
        for name, part in parts.items():
            self.add_module(name, part)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)


def conv_head() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1))


@pytest.mark.parametrize(
    ("parts", "heads"),
    [
        ({"head": nn.Linear(8, 5), "head_dist": nn.Linear(8, 5)}, {"head", "head_dist"}),
        ({"classifier": conv_head(), "aux_classifier": conv_head()}, None),
        ({"policy": Head(), "value": Head()}, {"value.two"}),  # of unknown names the last
        ({"heads": nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 5))}, {"heads.1"}),
        ({"fc": nn.Linear(8, 5), "decode": nn.Linear(5, 8)}, {"fc", "decode"}),
        ({"fc1": nn.Linear(8, 8), "fc_in": nn.Linear(8, 8), "fc3": nn.Linear(8, 5)}, {"fc3"}),
        ({"lm_head": nn.Linear(8, 5), "multihead": Head()}, {"lm_head", "multihead.two"}),
        ({"multihead": Head(), "score": nn.Linear(8, 5)}, {"score"}),
        ({}, set()),
    ],
)
def test_safe_leaves_every_head_dense(parts, heads):
    heads = {"classifier.2", "aux_classifier.2"} if heads is None else heads
    assert dense_names(sparsify(Parts(**parts), 0.5)) == {"stem"} | heads


def test_a_preset_that_leaves_nothing_to_convert_says_so():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"0: the stem: preset='safe'; .*preset='all' leaves none"):
        sparsify(model)
    with pytest.raises(ValueError, match="preset: unknown value 'sfae'; did you mean 'safe'"):
        sparsify(model, preset="sfae")


def test_layers_that_no_sparse_layer_stands_for_are_named():
    model = nn.Sequential(
        nn.Conv3d(2, 2, 1), nn.ConvTranspose2d(2, 2, 1), nn.LSTM(4, 4), nn.Linear(4, 4)
    )
    with pytest.warns(UserWarning, match="0: nn.Conv3d has no sparse layer") as found:
        sparse = sparsify(model, 0.5, preset="all")
    assert "1: nn.ConvTranspose2d has no" in str(found[0].message)
    notes = [layer.note for layer in summary(sparse).layers]
    assert notes[:3] == [
        f"nn.{k} has no sparse layer" for k in ("Conv3d", "ConvTranspose2d", "LSTM")
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(model, 0.5, preset="all", exclude=["0", "1", "2"])
    with pytest.raises(ValueError, match=r"no nn\.Conv1d.* to convert: the model: nn.Conv3d has"):
        sparsify(nn.Conv3d(2, 2, 1))


def test_summary_has_the_sparsity_of_the_whole_model_too():
    model = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(8, 8, bias=False))
    table = summary(sparsify(model, 0.5, preset="all"))
    assert table.sparsity == 0.5
    assert table.model_sparsity == pytest.approx(32 / 8064)
    assert "32 of 64 weights, sparsity 0.5000; whole model: 8,032 of 8,064" in str(table)


def test_over_the_model_counts_layers_without_a_twin_too():
    model = nn.Sequential(nn.Conv3d(4, 4, 1), nn.Linear(16, 16))
    sparse = sparsify(model, 0.5, preset="all", over="model", exclude=["0"])
    (layer,) = (module for _, module in named_sparse_modules(sparse))
    assert layer.nnz == (256 + 16) // 2 - 16
    model[0] = nn.LazyConv3d(4, 1)
    with pytest.raises(ValueError, match="over: 'model' counts the weights of 0, which is lazy"):
        sparsify(model, 0.5, preset="all", over="model", exclude=["0"])


def test_blocks_that_move_a_layers_sparsity_are_named():
    model = nn.Sequential(nn.Linear(10, 8), nn.Linear(64, 64))
    options = {"preset": "all", "overrides": {"0": 0.95}, "block_size": 8}
    with pytest.warns(UserWarning, match=r"whole blocks move .*: 0: 0\.900, not 0\.950$"):
        sparsify(model, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(model, **(options | {"overrides": {"0": 0.9}}))


class Reader(nn.Module):
    """Reads the weight of one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.read, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x) @ self.read.weight)


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved]


@pytest.mark.parametrize("make", COPIES, ids=["deepcopy", "pickle", "file"])
@pytest.mark.filterwarnings("ignore:sparsify")
def test_copies_know_why_their_layers_are_dense(make):
    options = {"exclude": ["blocks.0.expand"], "example_input": torch.randn(2, 3, 6, 6)}
    sparse = sparsify(mobile(), 0.5, **options)
    assert str(summary(make(sparse))) == str(summary(sparse))
    assert note_of(make(sparse), "blocks.0.expand") == "excluded by 'blocks.0.expand'"
    assert note_of(make(sparse).blocks, "1.depthwise") == "depthwise: preset='safe'"
    reader = sparsify(Reader(), 0.5, example_input=torch.randn(2, 8))
    assert note_of(make(reader), "read") == "the model's own code reads its weight"


@pytest.mark.parametrize("inplace", [False, True])
def test_what_is_known_of_dense_layers_ends_with_the_next_sparsify_or_densify(inplace):
    model = mobile()
    before = [set(vars(module)) for module in model.modules()]
    sparse = sparsify(model, 0.5, inplace=inplace)
    again = sparsify(sparse, 0.5, preset="all", exclude=["head", "*depthwise"], inplace=inplace)
    assert note_of(again, "head") == "excluded by 'head'"
    assert inplace or note_of(sparse, "head") == "the classifier head: preset='safe'"
    back = densify(again, inplace=inplace)
    assert [set(vars(module)) for module in back.modules()] == before
    assert not any(layer.note for layer in summary(back).layers)
    assert inplace or [set(vars(module)) for module in model.modules()] == before
