"""What a run takes over from a finished one before its first iteration: the recipe's ``[start]``.

weights             All weights and statistics of the other run. From a dense run a sparse model
                    takes every position, so it begins at density 1, for pruning.
structure           The final pattern of a sparse run. Values and all else are this run's own.
structure_and_init  The final pattern with the other run's initial values. Where the other run drew
                    no initial value, this run draws one from the same distribution. In the paper
                    these come from one dense initial tensor; a grown weight starts at 0, so its
                    entry there never took part. Dense parameters are the initial ones, too.

The other run may have trained on other images: to go on from a large data set on a small one is
fair. But where both split one data set differently, it may have trained on images that are held
out here. So a run says where its images differ, in one line and in run.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from dsr_kernels.backends.blocks import block_size_of
from dsr_kernels.distribution import budget
from dsr_kernels.errors import UsageError, check_path
from dsr_kernels.models.layers import draw_
from dsr_kernels.nn import SparseModule, named_sparse_modules
from dsr_kernels.ops.reference import at_pattern
from dsr_kernels.topology import Topology
from dsr_kernels.training.data.sets import DataSet
from dsr_kernels.training.data.streams import stream
from dsr_kernels.training.recipe.rewirer import method_of
from dsr_kernels.training.recipe.schema import Recipe
from dsr_kernels.training.run import checkpoint
from dsr_kernels.training.run.checkpoint import Weights
from dsr_kernels.training.run.files import Json
from dsr_kernels.training.run.folder import Run
from dsr_kernels.training.setup import build_model


def take_over(recipe: Recipe, model: nn.Module, data: DataSet) -> Json | None:
    """Applies the recipe's ``[start]`` to the fresh `model`; returns what run.json says of it.

    Returns None where the recipe names no run. Prints a line where the other run's training images
    are not those of `data`. Raises UsageError where the other run is not finished, is of another
    kind, or has a layer of another shape.
    """
    if not recipe.start.run:
        return None
    check_path(recipe.start.run, "recipe: start.run")
    run = Run.open(Path(recipe.start.run))
    if run.read_json("results.json") is None:
        raise UsageError(f"recipe: start.run: {run.folder} is not finished; continue it first")
    steps = checkpoint.Checkpoints(run.folder / "checkpoints").steps()
    if not steps:
        raise UsageError(f"recipe: start.run: {run.folder} has no checkpoint")
    weights, state = checkpoint.load(steps[-1])
    layers = dict(named_sparse_modules(model))
    _check_layers(run, layers, weights)
    if recipe.start.take == "weights":
        _take_weights(run, model, layers, weights)
        _check_prunable(recipe, run, layers)
    else:
        _take_structure(run, recipe, model, layers, weights, data)
    theirs, ours = state.get("data"), data.fingerprint()
    if theirs != ours:
        print(
            f"start.run: {run.folder} was trained on other images ({theirs}) than this run "
            f"({ours}). It may have learned from images that are held out here"
        )
    manifest = json.loads((steps[-1] / checkpoint.MANIFEST).read_text(encoding="utf-8"))
    return {
        "run": str(run.folder.resolve()),
        "take": recipe.start.take,
        "checkpoint": steps[-1].name,
        "weights_sha256": manifest["files"][checkpoint.WEIGHTS]["sha256"],
        "data": theirs,
    }


def _check_prunable(recipe: Recipe, run: Run, layers: dict[str, SparseModule]) -> None:
    """Raises UsageError where gradual pruning would have nothing to prune."""
    sparsity = recipe.model.sparsity
    final = sum(budget(layer.numel, sparsity, layer.block_size) for layer in layers.values())
    nnz = sum(layer.nnz for layer in layers.values())
    if method_of(recipe).SHRINKS and nnz <= final:
        raise UsageError(
            f"recipe: start.run: expected more non-zeros than the {final} that pruning to "
            f"model.sparsity {recipe.model.sparsity} leaves, {run.folder} has {nnz}; start from a "
            "dense run"
        )


def _check_layers(run: Run, layers: dict[str, SparseModule], weights: Weights) -> None:
    """Raises UsageError unless the run has all `layers`, sparse or dense, in the same shapes."""
    about = run.read_json("run.json")
    if about is None:
        raise UsageError(f"recipe: start.run: {run.folder} has no run.json")
    shapes = {entry["name"]: tuple(entry["shape"]) for entry in about["model"]["layers"]}
    for name, layer in layers.items():
        dense = weights.get(f"{name}.weight")
        found = shapes.get(name) if dense is None else tuple(dense.shape)
        if found is None:
            raise UsageError(f"recipe: start.run: {run.folder} has no layer {name}")
        if found != layer.weight_shape:
            raise UsageError(
                f"recipe: start.run: layer {name}: expected a weight of shape "
                f"{layer.weight_shape}, the one in {run.folder} is {found}"
            )


def _take_weights(
    run: Run, model: nn.Module, layers: dict[str, SparseModule], weights: Weights
) -> None:
    rest = dict(weights)
    for name, layer in layers.items():
        weight = rest.pop(f"{name}.weight", None)
        if weight is None:
            part = f"{name}."
            own = {key.removeprefix(part): rest.pop(key) for key in weights if key.startswith(part)}
            try:
                layer.load_state_dict(own)
            except (RuntimeError, ValueError) as error:
                raise UsageError(f"recipe: start.run: layer {name}: {error}") from None
        else:
            everywhere = _everywhere(layer)
            pattern = everywhere.crow_indices, everywhere.col_indices
            values = at_pattern(weight, *(index.to(weight.device) for index in pattern))
            _replace(layer, everywhere, values.to(layer.weight_values.dtype))
    _load_dense(run, model, rest)


def _everywhere(layer: SparseModule) -> Topology:
    """The pattern of all positions of the layer."""
    size, length = layer.block_size, layer.row_length
    rows = layer.weight_shape[0] // size
    crow = torch.arange(rows + 1, dtype=torch.int32) * length
    col = torch.arange(length, dtype=torch.int32).repeat(rows)
    return Topology(layer.weight_shape, crow, col, size)


def _take_structure(
    run: Run,
    recipe: Recipe,
    model: nn.Module,
    layers: dict[str, SparseModule],
    weights: Weights,
    data: DataSet,
) -> None:
    if not layers:
        raise UsageError(
            f"recipe: start.take: method {recipe.method} has no sparse layers that could take "
            f"the structure of {run.folder}"
        )
    initial = _initial_model(run, data) if recipe.start.take == "structure_and_init" else None
    for name, layer in layers.items():
        if f"{name}.weight_values" not in weights:
            raise UsageError(
                f"recipe: start.take: layer {name} of {run.folder} is dense, so there is no "
                "structure to take"
            )
        crow, col = weights[f"{name}.crow_indices"], weights[f"{name}.col_indices"]
        size, theirs = layer.block_size, block_size_of(crow, layer.weight_shape[0])
        if theirs != size:
            raise UsageError(
                f"recipe: start.take: layer {name} has block_size={size} here, {theirs} in "
                f"{run.folder}; set model.block_size to that run's"
            )
        topology = Topology(layer.weight_shape, crow, col, size)
        values = torch.empty(topology.blocks, size, dtype=layer.weight_values.dtype)
        draw_(values, layer.weight_shape, stream(recipe.seed, "start", name))
        if initial is not None:
            _restore(values, topology, initial.get_submodule(name))
        _replace(layer, topology, values)
    if initial is not None:
        sparse = tuple(f"{name}." for name in layers)
        state = initial.state_dict()
        _load_dense(run, model, {k: v for k, v in state.items() if not k.startswith(sparse)})


def _initial_model(run: Run, data: DataSet) -> nn.Module:
    """The model that the run began with, drawn again from its seed."""
    recipe = run.recipe()
    if recipe.start.run:
        raise UsageError(
            f"recipe: start.take: {run.folder} itself started from {recipe.start.run}, so its seed "
            "does not give its initial values"
        )
    return build_model(recipe, data)


@torch.no_grad()
def _restore(values: Tensor, topology: Topology, initial: SparseModule) -> None:
    """Writes into `values` what `initial` has at the positions that both patterns have."""
    ours, theirs = topology.linear_positions(), initial.topology.linear_positions()
    where = torch.searchsorted(theirs, ours).clamp_max(len(theirs) - 1)
    both = theirs[where] == ours
    values[both] = initial.weight_values[where[both]].to(values.dtype)


def _replace(layer: SparseModule, topology: Topology, values: Tensor) -> None:
    device = layer.weight_values.device
    pattern = topology.to(device)
    layer.replace_topology(pattern.crow_indices, pattern.col_indices, values.to(device))


def _load_dense(run: Run, model: nn.Module, rest: Weights) -> None:
    """Copies what belongs to no sparse layer. Raises UsageError unless all of it fits."""
    own = model.state_dict()
    sparse = tuple(f"{name}." for name, _ in named_sparse_modules(model))
    for key in (*own, *rest):
        if key.startswith(sparse):
            continue
        ours, theirs = (tuple(d[key].shape) if key in d else None for d in (own, rest))
        if ours != theirs:
            layer, _, part = key.rpartition(".")
            raise UsageError(
                f"recipe: start.run: layer {layer}: expected {part} of shape {ours}, the one in "
                f"{run.folder} is {theirs}"
            )
    model.load_state_dict(rest, strict=False)
