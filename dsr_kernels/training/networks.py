"""Models that are not this package's: of timm, of torchvision, or a user's own function."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from dsr_kernels.choices import unknown
from dsr_kernels.convert import sparsify
from dsr_kernels.errors import UsageError, require
from dsr_kernels.models.layers import initialize_
from dsr_kernels.nn.from_dense import DenseLayer
from dsr_kernels.training.data.random_items import own_random_numbers
from dsr_kernels.training.recipe import references
from dsr_kernels.training.recipe.model_keys import is_own
from dsr_kernels.training.recipe.schema import Model, Recipe

KEY = "model.name"


class Inputs(Protocol):
    """What a model is for: data of this shape, to be told apart into so many classes."""

    @property
    def classes(self) -> int: ...

    @property
    def image_shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...


def build(recipe: Recipe, data: Inputs, generator: torch.Generator) -> nn.Module:
    """The dense model that the recipe names by reference, for inputs as those of `data`.

    Its weights follow from `generator`, by whatever of torch's, numpy's and Python's random numbers
    draws them. Raises UsageError where there is no such model, and where it does not make numbers
    [B, classes] of the inputs.
    """
    settings = recipe.model
    libraries = {"timm": _of_timm, "torchvision": _of_torchvision}
    found = references.find(settings.name, libraries)
    assert found is not None  # the schema has seen to that
    make = libraries.get(found.where, _of_user)
    seed = int(torch.randint(2**31, (), generator=generator))
    with own_random_numbers(seed):
        model = make(found, settings, data)
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"recipe: {KEY}: expected {settings.name} to give a torch.nn.Module, got "
                f"{type(model).__name__}"
            )
        _try(model, settings, data)
    return model


def _of_timm(found: references.Reference, settings: Model, data: Inputs) -> Any:
    timm = require("timm", f"model {settings.name}", "models")
    if not timm.is_model(found.name.partition(".")[0]):
        raise UsageError(f"recipe: {KEY}: timm has no {unknown(found.name, timm.list_models())}")
    arguments = {"num_classes": data.classes, "in_chans": _channels(data), **settings.arguments}
    return references.call(partial(timm.create_model, found.name), KEY, arguments, {})


def _of_torchvision(found: references.Reference, settings: Model, data: Inputs) -> Any:
    models = require("torchvision.models", f"model {settings.name}", "models")
    if found.name not in models.list_models():
        known = models.list_models()
        raise UsageError(f"recipe: {KEY}: torchvision has no {unknown(found.name, known)}")
    if _channels(data) != 3:
        raise UsageError(
            f"recipe: {KEY}: models of torchvision take images of 3 channels, these have "
            f"{_channels(data)}; take one of timm, which adapts, or a function of your own"
        )
    arguments = {"num_classes": data.classes, **settings.arguments}
    return references.call(partial(models.get_model, found.name), KEY, arguments, {})


def _of_user(found: references.Reference, settings: Model, data: Inputs) -> Any:
    function = references.imported(found, KEY)
    offered = {"num_classes": data.classes, "in_channels": _channels(data)}
    return references.call(function, KEY, settings.arguments, offered)


def _channels(data: Inputs) -> int:
    return data.image_shape[0] if data.image_shape else 1


@torch.no_grad()
def _try(model: nn.Module, settings: Model, data: Inputs) -> None:
    """Raises UsageError unless the model makes numbers [B, classes] of inputs, here zeros.

    A lazy layer learns its size by the way.
    """
    shape = (2, *data.image_shape)
    was_training = model.training
    model.eval()
    try:
        output = model(torch.zeros(shape, dtype=data.dtype))
    except Exception as error:
        what = f"recipe: {KEY}: {settings.name} of an input {shape}"
        raise references.failed(error, what) from None
    logits(output, 2, data.classes, settings.name)
    model.train(was_training)


def logits(output: Any, batch: int, classes: int, name: str) -> torch.Tensor:
    """The numbers [batch, classes] that a model gives, also as the `logits` of what it gives.

    Raises UsageError for anything else, such as a tuple with the outputs of auxiliary heads, whose
    losses nobody would add.
    """
    if not isinstance(output, (torch.Tensor, tuple)) and hasattr(output, "logits"):
        output = output.logits
    found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if found != (batch, classes):
        raise UsageError(
            f"recipe: {KEY}: expected {name} to give one tensor ({batch}, {classes}), a number for "
            f"each class, got {found}; set its arguments in model.arguments, or wrap it in a "
            "function of your own"
        )
    return output


def make_sparse(
    recipe: Recipe, dense: nn.Module, sparsity: float, generator: torch.Generator
) -> nn.Module:
    """The sparse model of a dense one, by the recipe's keys, which are arguments of `sparsify`.

    A model of this package keeps the layers dense that the paper keeps, and is initialised anew as
    the paper does. Raises UsageError for what `sparsify` refuses.
    """
    settings, own = recipe.model, is_own(recipe)
    exclude = list(settings.exclude)
    if own:
        layers = ((n, m) for n, m in dense.named_modules() if isinstance(m, DenseLayer))
        exclude += [name for name, m in layers if not getattr(m, "sparsifiable", False)]
    try:
        model = sparsify(
            dense,
            sparsity,
            settings.distribution,
            preset="all" if own else settings.preset,
            exclude=exclude,
            overrides=settings.overrides,
            keep="kernels" if settings.granularity == "kernel" else settings.keep,
            block_size=settings.block_size,
            inplace=True,
            generator=generator,
        )
    except ValueError as error:
        said = str(error).removeprefix("sparsify: ")
        key = said.partition(":")[0]
        named = f"model.{said}" if hasattr(settings, key) else f"model: {said}"
        raise UsageError(f"recipe: {named}") from None
    if own:
        initialize_(model, generator)
    return model
