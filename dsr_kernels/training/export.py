"""A run's model as a file for others: dense, and checked against the run's own sparse model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsr_kernels.convert import densify
from dsr_kernels.errors import UsageError, check_path, require, require_all
from dsr_kernels.fusing import unfuse
from dsr_kernels.training.data import sets as datasets
from dsr_kernels.training.networks import Inputs, logits
from dsr_kernels.training.recipe.references import failed
from dsr_kernels.training.recipe.schema import Recipe
from dsr_kernels.training.run.checkpoint import Checkpoints
from dsr_kernels.training.run.files import Json, temporary
from dsr_kernels.training.run.folder import Run
from dsr_kernels.training.setup import build_model

ENDINGS = (".onnx", ".pt2", ".safetensors")
TOLERANCE = 1e-4  # of the largest output: sums of float32 in another order
BATCH = 3  # images of the comparison; the file is made with another number


@dataclass(frozen=True)
class Facts:
    """What run.json says of a model's inputs, so that no data set need be read."""

    classes: int
    image_shape: tuple[int, ...]
    dtype: torch.dtype


def input_facts(data: datasets.DataSet) -> Json:
    """The same for run.json, with what images are normalised by: (byte - mean) / std."""
    moments = {
        name: None if value is None else value.tolist()
        for name, value in (("mean", data.mean), ("std", data.std))
    }
    kind = str(data.dtype).removeprefix("torch.")
    return {"shape": list(data.image_shape), "dtype": kind, "classes": data.classes, **moments}


def export(folder: Path, target: Path, data_dir: Path | None = None) -> str:
    """Writes the model of the run in `folder`, as its newest checkpoint has it, to `target`.

    Its ending says the format: .onnx, .pt2 (torch.export) or .safetensors (the state_dict of the
    dense model). Sparse layers become dense. The file is read back, and left behind only where it
    gives what the sparse model gives. Returns a line that says what it takes.

    Raises UsageError for a folder without checkpoint, another ending, a model that cannot be
    exported, or a file whose outputs differ.
    """
    check_path(target, "export")
    if target.suffix not in ENDINGS:
        raise UsageError(
            f"export: expected a file that ends in {', '.join(ENDINGS)}, got {target.name}"
        )
    if target.exists():
        raise UsageError(f"export: {target} is there already; name another file")
    run = Run.open(folder)
    recipe = run.recipe()
    newest = Checkpoints(run.folder / "checkpoints").load_latest()
    if newest is None:
        raise UsageError(f"export: {run.folder} has no checkpoint yet")
    said = _input(run, recipe, data_dir)
    facts = Facts(said["classes"], tuple(said["shape"]), getattr(torch, said["dtype"]))
    model = build_model(recipe, facts)
    model.load_state_dict(newest[0])
    unfuse(model).eval()
    part = target.with_name(f"{temporary(target.stem)}{target.suffix}")
    formats: dict[str, Callable[[nn.Module, torch.Tensor, Path], _Module]] = {
        ".onnx": _onnx,
        ".pt2": _pt2,
        ".safetensors": lambda dense, _, path: _safetensors(dense, path, recipe, facts),
    }
    try:
        part.unlink(missing_ok=True)  # a link there would be written through
        try:
            read_back = formats[target.suffix](densify(model), _inputs(model, facts, 2), part)
        except UsageError:
            raise
        except Exception as error:
            raise failed(error, f"export: {target.suffix}") from None
        _compare(model, read_back, _inputs(model, facts, BATCH), recipe, facts)
        os.replace(part, target)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return _words(target, said)


_Module = Callable[[torch.Tensor], torch.Tensor]


def _input(run: Run, recipe: Recipe, data_dir: Path | None) -> Json:
    """What run.json says of inputs; of an older version's run, what the data say."""
    about = run.read_json("run.json") or {}
    if "input" in about:
        return about["input"]
    where = data_dir or (Path(about["data_dir"]) if about.get("data_dir") else None)
    return input_facts(datasets.load(recipe.data, where))


def _inputs(model: nn.Module, facts: Inputs, count: int) -> torch.Tensor:
    """Some inputs, the same each time: normal numbers, or indices that each embedding has; zeros
    where the model has none, for it may do anything with whole numbers.
    """
    shape = (count, *facts.image_shape)
    drawn = torch.Generator().manual_seed(0)
    if facts.dtype.is_floating_point:
        return torch.randn(shape, generator=drawn, dtype=facts.dtype)
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    below = min((table.num_embeddings for table in tables), default=1)
    return torch.randint(below, shape, generator=drawn, dtype=facts.dtype)


@torch.no_grad()
def _compare(
    model: nn.Module, read_back: _Module, inputs: torch.Tensor, recipe: Recipe, facts: Inputs
) -> None:
    """Raises UsageError unless the file gives what the model gives, up to rounding."""
    name = recipe.model.name
    ours = logits(model(inputs), len(inputs), facts.classes, name)
    theirs = logits(read_back(inputs), len(inputs), facts.classes, name)
    largest, apart = ours.abs().max().item(), (ours - theirs).abs().max().item()
    if not apart <= TOLERANCE * largest + 1e-6:
        raise UsageError(
            f"export: the file gives other outputs than the run's model: they differ by {apart:.3g}"
            f", the largest is {largest:.3g}; it is not kept"
        )


def _pt2(dense: nn.Module, example: torch.Tensor, path: Path) -> _Module:
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(dense, (example,), dynamic_shapes=shapes), path)
    return torch.export.load(path).module()


def _onnx(dense: nn.Module, example: torch.Tensor, path: Path) -> _Module:
    packages = ("onnx", "onnxscript", "onnxruntime")
    *_, onnxruntime = require_all(packages, "export to ONNX", "export")
    torch.onnx.export(
        dense,
        (example,),
        str(path),
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


def _safetensors(dense: nn.Module, path: Path, recipe: Recipe, facts: Inputs) -> _Module:
    safetensors: Any = require("safetensors.torch", "export")
    state = {name: t.detach().contiguous().clone() for name, t in dense.state_dict().items()}
    path.write_bytes(safetensors.save(state, metadata={"format": "pt"}))
    twin = build_model(recipe, facts, sparse=False)
    twin.load_state_dict(safetensors.load_file(path))
    return twin.eval()


def _words(target: Path, said: Json) -> str:
    shape = ", ".join(map(str, ("batch", *said["shape"])))
    normal = ""
    if said["mean"] is not None:
        mean, std = ([round(number, 3) for number in said[key]] for key in ("mean", "std"))
        normal = f", of bytes as (byte - mean) / std with mean {mean} and std {std}"
    return f"{target}: takes {said['dtype']} ({shape}){normal}; checked against the run's model"
