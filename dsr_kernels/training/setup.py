"""Builds what a recipe names: the model and its optimizer; and describes their sizes."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import nn

from dsr_kernels import models
from dsr_kernels.distribution import check_uniform
from dsr_kernels.errors import UsageError
from dsr_kernels.fusing import fuse
from dsr_kernels.models.layers import lay_out_, weight_shape
from dsr_kernels.models.thin import learnable, learnable_if_sparse
from dsr_kernels.nn import named_sparse_modules
from dsr_kernels.training.data import limits
from dsr_kernels.training.data.sets import DataSet
from dsr_kernels.training.data.streams import stream
from dsr_kernels.training.networks import Inputs, build, make_sparse
from dsr_kernels.training.recipe.model_keys import is_own
from dsr_kernels.training.recipe.rewirer import for_method, method_of
from dsr_kernels.training.recipe.schema import DENSE, Model, Recipe

USUAL_WIDTHS = {"wrn28": 2.0}  # 1 for all others
_SLOTS = {"sgd": 0, "adam": 2, "adamw": 2}  # numbers of optimizer state for each weight, at least
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def build_model(recipe: Recipe, data: Inputs, sparse: bool | None = None) -> nn.Module:
    """The recipe's model for the images of `data`, or whatever their shape says they are.

    A sparse one is fused, unless the recipe says otherwise; its states are the same either way. A
    method of dense models, and ``sparse=False``, give the dense twin. Raises UsageError for a
    model that memory cannot hold, before anything of it is allocated.
    """
    sparse = recipe.method not in DENSE if sparse is None else sparse
    generator = stream(recipe.seed, "init")
    sparsity = starting_sparsity(recipe)
    _check_shape(recipe, data)
    if is_own(recipe):
        model = _own_model(recipe, data, sparsity, sparse, generator)
    else:
        model = build(recipe, data, generator)
        model = make_sparse(recipe, model, sparsity, generator) if sparse else model
    if sparse and recipe.model.fused:
        fuse(model, verbose=False)
    if not takes_images(recipe, data):
        return model
    return model.to(memory_format=FORMATS[recipe.model.memory_format])


def _own_model(
    recipe: Recipe, data: Inputs, sparsity: float, sparse: bool, generator: torch.Generator
) -> nn.Module:
    """A model of this package. Its sparse layers are the paper's choice, or the recipe's."""
    width = model_width(recipe, data)
    _check_size(recipe, data, width, sparsity if sparse else None)
    if sparse and (recipe.model.exclude or recipe.model.overrides):
        dense = _network(recipe, data, width, sparse=False, generator=generator)
        return make_sparse(recipe, dense, sparsity, generator)
    options = {"sparsity": sparsity, "sparse": sparse, "generator": generator}
    try:
        model = _network(recipe, data, width, **options)
    except ValueError as error:  # more non-zeros than indices can count
        raise UsageError(f"recipe: model: {error}") from None
    if sparse:
        _lay_out(recipe.model, model, sparsity, generator)
    return model


def takes_images(recipe: Recipe, data: Inputs) -> bool:
    """Whether the model takes images [C, H, W], whose memory format matters."""
    return recipe.model.name != "lenet300" and len(data.image_shape) == 3


def _check_shape(recipe: Recipe, data: Inputs) -> None:
    """Raises UsageError for data that are no images where the recipe needs images."""
    if len(data.image_shape) == 3 and data.dtype.is_floating_point:
        return
    found = f"inputs of shape {tuple(data.image_shape)} and {data.dtype}"
    if is_own(recipe) and (recipe.model.name != "lenet300" or not data.dtype.is_floating_point):
        raise UsageError(
            f"recipe: model.name: {recipe.model.name} is for images [C, H, W] of floats, the data "
            f"have {found}"
        )
    if recipe.model.memory_format == "channels_last":
        raise UsageError(
            f"recipe: model.memory_format: channels_last is for images [C, H, W], the data have "
            f"{found}; expected contiguous"
        )


def _check_size(recipe: Recipe, data: Inputs, width: float, sparsity: float | None) -> None:
    """Raises UsageError where weights, gradients and optimizer state are more than all memory.

    `sparsity` is the sparse layers' at the start; None: a dense model.
    """
    state = 4 * (2 + _SLOTS[recipe.optimizer.name])  # bytes for each weight
    if state * _most_weights(recipe, data, width) <= limits.memory_bytes():
        return  # to build a model without memory takes torch a few seconds, the first time
    twin = _network(recipe, data, width, sparse=False, device="meta")
    try:
        sparse = None if sparsity is None else (sparsity, recipe.model.distribution)
        count = learnable(twin) if sparse is None else learnable_if_sparse(twin, *sparse)
    except ValueError as error:
        raise UsageError(f"recipe: model.{error}") from None
    way_out = "expected a smaller model.width, a smaller data.image_size or more model.sparsity"
    limits.check_memory(state * count, f"recipe: the model of {count:,} weights", way_out)


def check_batch(recipe: Recipe, data: DataSet) -> None:
    """Raises UsageError where a batch of images is more than all memory."""
    largest = min(recipe.training.eval_batch_size, len(data.test))
    images = max(recipe.training.batch_size, largest) * math.prod(data.image_shape)
    way_out = "expected a smaller training.batch_size, training.eval_batch_size or data.image_size"
    limits.check_memory(4 * images, "recipe: a batch of images", way_out)


def _most_weights(recipe: Recipe, data: Inputs, width: float) -> float:
    """At least as many as the dense model has: ResNet-50 is the largest, with 26 million."""
    wider = max(1.0, width / USUAL_WIDTHS.get(recipe.model.name, 1.0))
    inputs = math.prod(data.image_shape) if recipe.model.name == "lenet300" else 0
    return 3e7 * wider**2 + wider * (300 * inputs + 2048 * data.classes)


def starting_sparsity(recipe: Recipe) -> float:
    """The sparsity of the sparse layers before the first iteration."""
    return method_of(recipe).starting_sparsity(for_method(recipe))


def _lay_out(
    settings: Model, model: nn.Module, sparsity: float, generator: torch.Generator
) -> None:
    """Draws the patterns that are not plain uniform ones, which the model already has.

    Raises UsageError for a sparsity out of reach.
    """
    plain = settings.distribution == "uniform" and settings.granularity == "weight"
    try:
        if settings.distribution == "uniform":
            layers = dict(named_sparse_modules(model))
            sizes = {name: module.numel for name, module in layers.items()}
            blocks = {name: module.block_size for name, module in layers.items()}
            check_uniform(sizes, settings.sparsity, blocks)
        if not plain:
            lay_out_(model, sparsity, settings.distribution, settings.granularity, generator)
    except ValueError as error:
        raise UsageError(f"recipe: model.{error}") from None


def model_width(recipe: Recipe, data: Inputs) -> float:
    """The width multiplier of the recipe's model; 1 where that has none.

    The recipe may give it. Else it is the model's usual one or, for thin_dense, the largest whose
    model has no more parameters than the sparse model.
    """
    if recipe.model.width:
        return recipe.model.width
    usual = USUAL_WIDTHS.get(recipe.model.name, 1.0)
    if recipe.method != "thin_dense":
        return usual
    twin = functools.partial(_network, recipe, data, sparse=False, device="meta")
    try:
        return models.thin_width(twin, usual, recipe.model.sparsity, recipe.model.distribution)
    except ValueError as error:
        raise UsageError(f"recipe: model.{error}") from None


def _network(recipe: Recipe, data: Inputs, width: float, **options: Any) -> nn.Module:
    options |= {"width": width, "num_classes": data.classes}
    options["block_size"] = recipe.model.block_size
    if recipe.model.name == "lenet300":
        return models.lenet_300_100(in_features=math.prod(data.image_shape), **options)
    build = {"wrn28": models.wrn_28, "resnet18": models.resnet18, "resnet50": models.resnet50}
    return build[recipe.model.name](in_channels=data.image_shape[0], **options)


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer, with all parameters in one group.

    Weight decay acts on the values of a sparse layer as on any dense weight. The model must be on
    the device it will be trained on: on a GPU one launch updates all parameters.
    """
    settings = recipe.optimizer
    options = {
        "lr": settings.lr[0][1],
        "weight_decay": settings.weight_decay,
        "fused": next(model.parameters()).is_cuda or None,
    }
    if settings.name == "sgd":
        options |= {"momentum": settings.momentum, "nesterov": settings.nesterov}
        return torch.optim.SGD(model.parameters(), **options)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
    return kind(model.parameters(), **options)


def sparse_layers(model: nn.Module) -> dict[str, int]:
    """Non-zeros of each sparse layer now, in the order of the model."""
    return {name: module.nnz for name, module in named_sparse_modules(model)}


def describe(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Parameters and bytes of the model and its optimizer, beside those of the dense twin.

    Only parameters, indices and optimizer state count. Batch norm's running statistics are the
    same for both, and gradients and activations come and go.
    """
    layers, positions, nonzeros, indices, zeros = [], 0, 0, 0, 0
    for name, module in named_sparse_modules(model):
        size = math.prod(weight_shape(module))
        layers.append(
            {
                "name": name,
                "shape": list(weight_shape(module)),
                "positions": size,
                "block_size": module.block_size,
            }
        )
        positions += size
        nonzeros += module.nnz
        zeros += module.nnz - int(module.weight_values.detach().count_nonzero())
        indices += module.crow_indices.nbytes + module.col_indices.nbytes
    learnable = sum(parameter.numel() for parameter in model.parameters())
    dense_twin = learnable - nonzeros + positions
    width = next(model.parameters()).element_size()
    slots = _slots(optimizer)
    return {
        "layers": layers,
        "sparse_positions": positions,
        "nonzeros": nonzeros,
        "zeros": zeros,  # of the non-zeros: those whose value is exactly 0
        "dense_parameters": learnable - nonzeros,
        "learnable": learnable,
        "bytes": {
            "parameters": learnable * width,
            "indices": indices,
            "optimizer": learnable * width * slots,
            "total": learnable * width * (1 + slots) + indices,
        },
        "dense_bytes": {
            "parameters": dense_twin * width,
            "indices": 0,
            "optimizer": dense_twin * width * slots,
            "total": dense_twin * width * (1 + slots),
        },
    }


def _slots(optimizer: torch.optim.Optimizer) -> int:
    """How many numbers the optimizer keeps for each weight."""
    if isinstance(optimizer, torch.optim.SGD):
        return int(optimizer.defaults["momentum"] > 0)
    return 2
