"""What a run says of itself: what it is about to train, and what came out."""

from __future__ import annotations

import importlib.util
from collections import Counter

import torch

from dsr_kernels.environment import isa
from dsr_kernels.training.data.sets import DataSet
from dsr_kernels.training.loop import Trainer
from dsr_kernels.training.recipe.scaling import never_reached
from dsr_kernels.training.run.files import Json

# What a run goes without where a package is not installed.
WELCOME = {"tqdm": "progress bar", "tensorboard": "TensorBoard events", "matplotlib": "plots"}


def accuracy(results: Json) -> str:
    """The test accuracy of a finished run, in words."""
    top5 = f" (top-5 {results['test_top5']:.2%})" if "test_top5" in results else ""
    return f"test accuracy {results['test_accuracy']:.2%}{top5}"


def counts(data: DataSet) -> dict[str, int]:
    """How many images each part of the data has."""
    validation = 0 if data.validation is None else len(data.validation)
    return {"train": len(data.train), "validation": validation, "test": len(data.test)}


def announce(trainer: Trainer, model: Json) -> None:
    """Prints what is about to be trained; `model` is what `setup.describe` says of it."""
    recipe, images = trainer.recipe, counts(trainer.data)
    print(
        f"{recipe.name}: {recipe.method}, {recipe.training.epochs} epochs on {images['train']} "
        f"images of {'x'.join(map(str, trainer.data.image_shape))} "
        f"({images['validation']} validation, {images['test']} test)"
    )
    if model["layers"]:
        print(
            f"{model['nonzeros']:,} non-zeros in {len(model['layers'])} sparse layers of "
            f"{model['sparse_positions']:,} positions, {model['dense_parameters']:,} dense "
            f"parameters; {torch.get_num_threads()} threads, {trainer.device}"
        )
        wanted = recipe.model.block_size
        less = Counter(x["block_size"] for x in model["layers"] if x["block_size"] != wanted)
        if less:
            found = ", ".join(f"{less[size]} in blocks of {size}" for size in sorted(less))
            print(f"layers whose channels do not divide by blocks of {wanted}: {found}")
    else:
        print(
            f"dense, width {model['width']:g}: {model['learnable']:,} parameters; "
            f"{torch.get_num_threads()} threads, {trainer.device}"
        )
    if trainer.world.size > 1:
        hosts = ", ".join(dict.fromkeys(trainer.world.hosts))
        print(f"{trainer.world.size} processes on {hosts}, each trains on its part of a batch")
    if late := never_reached(recipe):
        epochs = recipe.training.epochs
        print(f"never reached in {epochs} epochs: {late}; --epochs {epochs} scales schedules")
    lacking = [name for name in WELCOME if importlib.util.find_spec(name) is None]
    if lacking:
        absent = ", ".join(f"no {WELCOME[name]}" for name in lacking)
        names = ", ".join(lacking)
        print(f'{absent}: {names} not installed; pip install "dsr_kernels[train]"')
    if trainer.position.iteration:
        print(f"continuing after iteration {trainer.position.iteration}", flush=True)


def print_speeds(results: Json) -> None:
    """Of a run that was compared with its dense twin."""
    speeds = results["against_dense"]["images_per_second"].items()
    print("training steps: " + ", ".join(f"{k} {v:,.0f} images/s" for k, v in speeds))


def say_rounding(began: Json, threads: int | None) -> None:
    """Says where a run goes on with another number of threads, or another instruction set, than the
    machine of its record, `began`, had.
    """
    if threads not in (None, began["threads"]):
        print(
            f"the run began with {began['threads']} threads. With another number torch's own "
            "layers round differently, so the results will not be bit-identical"
        )
    if (kernels := began.get("isa", isa())) != isa():
        print(
            f"the run began with the instruction set {kernels}. Another one, here {isa()}, rounds "
            "differently, so the results will not be bit-identical"
        )
