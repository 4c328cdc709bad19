"""preset="safe": which layers are heads, by what the model says, an example shows, or its order."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from dsr_kernels import sparsify, summary


class Base(nn.Module):
    """A body of two blocks of two linear layers; then the parts of a class that derives from it."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        for name, part in parts.items():
            self.add_module(name, part)

    def features(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x

    def forward(self, x):
        x = self.features(x)
        return {name: part(x) for name, part in self.named_children() if name != "blocks"} or x


class Block(nn.Module):
    def __init__(self, out: int = 8) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, out)

    def forward(self, x):
        return self.two(self.one(x).relu())


def heads_of(model: nn.Module, x: Tensor | None = None) -> set[str]:
    """The layers that sparsify leaves dense. Summary says that they are heads."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse = sparsify(model, 0.5, example_input=x)
    dense = {layer.name: layer.note for layer in summary(sparse).layers if not layer.sparse}
    assert set(dense.values()) <= {"the classifier head: preset='safe'"}
    return set(dense)


X = torch.randn(3, 8)


class Timm(Base):
    """Says what its head is, as models of timm do."""

    def __init__(self, classes: int = 5, said: str = "out", **parts: nn.Module) -> None:
        out = nn.Linear(8, classes) if classes else nn.Identity()
        super().__init__(out=out, conv_head=nn.Linear(8, 8), **parts)
        self.said = said

    def get_classifier(self):
        return getattr(self, self.said)

    def forward(self, x):
        return self.out(self.conv_head(self.features(x)))


@pytest.mark.parametrize("x", [None, X])
def test_a_model_may_say_what_its_head_is(x):
    assert heads_of(Timm(), x) == {"out"}  # registered before conv_head, which the body ends in
    assert heads_of(Timm(0), x) == set()
    both = Timm(said="both", other=nn.Linear(8, 5))
    both.both = (both.out, both.other)
    assert heads_of(both, x) == {"out", "other"}
    assert heads_of(Timm(AuxLogits=Block(5)), x) == {"out", "AuxLogits.two"}
    # It raises where its head has another name. Then conv_head looks like a head beside another.
    found = {"out"} if x is not None else {"out", "conv_head"}
    assert heads_of(Timm(said="fc"), x) == found


class Transformers(Base):
    """A model of transformers: `blocks` are its base."""

    base_model_prefix = "blocks"

    @property
    def base_model(self):
        return getattr(self, self.base_model_prefix, self)

    def get_output_embeddings(self):
        return self._modules.get("to_tokens")


@pytest.mark.parametrize("x", [None, X])
def test_what_is_beside_the_base_of_a_transformer_are_heads(x):
    assert heads_of(Transformers(score=nn.Linear(8, 2)), x) == {"score"}
    two = Transformers(qa=Block(2), span=nn.Linear(8, 2), drop=nn.Dropout())
    assert heads_of(two, x) == {"qa.two", "span"}


@pytest.mark.parametrize("x", [None, X])
def test_a_transformer_without_a_base_is_a_model_like_any_other(x):
    class Own(Transformers):
        base_model_prefix = "nothing"

    assert heads_of(Own(), x) == set()
    assert heads_of(Own(pooler=nn.Linear(8, 8)), x) == {"pooler"}
    assert heads_of(Own(to_tokens=nn.Linear(8, 30)), x) == {"to_tokens"}


def test_two_linear_layers_side_by_side_are_two_heads():
    assert heads_of(Base(actor=nn.Linear(8, 4), critic=nn.Linear(8, 1))) == {"actor", "critic"}
    chain = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 3)}
    assert heads_of(Base(**chain)) == {"c"}
    assert heads_of(Base(mean=nn.Linear(8, 4), decode=nn.Linear(4, 8))) == {"decode"}


def test_an_example_shows_heads_of_any_name_and_any_order():
    parts = {"policy": Block(4), "value": Block(1)}
    assert heads_of(Base(**parts)) == {"value.two"}  # nothing tells the policy from a body
    assert heads_of(Base(**parts), X) == {"policy.two", "value.two"}

    class Upside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.body = nn.Linear(8, 3), Block()

        def forward(self, x):
            return torch.softmax(self.last(self.body(x).tanh()), -1).flatten(1)

    assert heads_of(Upside()) == {"body.two"}
    assert heads_of(Upside(), X) == {"last"}


class Written(nn.Module):
    """Gives its outputs by writing into a tensor, in an object; one layer comes in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.left, self.right = Block(), nn.Linear(8, 2), nn.Linear(8, 2)
        self.helper, self.projection_head, self.after = nn.Linear(8, 2), Block(), nn.Linear(8, 8)

    def forward(self, x):
        x = self.after(self.projection_head(self.body(x)))
        out = x.new_zeros(len(x), 4)
        out[:, :2] = self.left(x)
        out[:, 2:].add_(self.right(x))
        return Output(out, self.helper(x) if self.training else None)


@dataclass
class Output:
    logits: Tensor
    helper: Tensor | None


@pytest.mark.parametrize("training", [True, False])
def test_an_example_shows_what_is_written_in_place_and_in_either_mode(training):
    model = Written().train(training)
    assert heads_of(model, X) == {"left", "right", "helper"}


def test_an_example_shows_that_there_is_no_head():
    assert heads_of(Base(), X) == set()
    stem = nn.Sequential(nn.Linear(8, 8), Residual())
    assert heads_of(stem) == {"1.inner.two"}  # the last layer, for all that can be known
    assert heads_of(stem, X) == set()

    class Decoder(nn.Sequential):
        pass

    decoder = Decoder(nn.Linear(8, 8), nn.Unflatten(1, (8, 1)), nn.ConvTranspose1d(8, 8, 1))
    with pytest.warns(UserWarning, match="2: nn.ConvTranspose1d has no sparse layer"):
        sparse = sparsify(decoder, 0.5, example_input=X)
    assert [layer.sparse for layer in summary(sparse).layers] == [True, False]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Block()

    def forward(self, x):
        return x + self.inner(x)


def test_a_head_that_the_forward_does_not_call_is_known_by_its_name():
    class Half(Base):
        def forward(self, x):
            return self.score(self.features(x))

    parts = {"head": nn.Linear(8, 3), "aux1": Block(3), "score": nn.Linear(8, 5)}
    assert heads_of(Half(**parts), X) == {"head", "aux1.two", "score"}
    assert heads_of(Base(pre_classifier=nn.Linear(8, 8), out=nn.Linear(8, 2))) == {"out"}


def test_heads_that_feed_each_other_are_known_by_their_names():
    class Cascade(Base):
        def forward(self, x):
            rough = self.head_a(self.features(x))
            return rough + self.head_b(rough)

    assert heads_of(Cascade(head_a=nn.Linear(8, 8), head_b=nn.Linear(8, 8)), X) == {
        "head_a",
        "head_b",
    }


def test_an_overridden_head_is_sparse_and_an_example_is_still_checked():
    model = Base(score=nn.Linear(8, 4))
    sparse = sparsify(model, 0.5, overrides={"score": 0.25}, example_input=X)
    assert sparse.score.nnz == 24
    with pytest.raises(ValueError, match=r"^example_input: the model does not run on \(3, 7\)"):
        sparsify(model, 0.5, example_input=X[:, :7])
    assert not any(module._forward_hooks for module in model.modules())
