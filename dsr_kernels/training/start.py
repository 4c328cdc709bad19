"""Starts or continues a run: the steps around the training loop, in the order a user sees them."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import torch

from dsr_kernels.environment import check_processor, device_facts, machine
from dsr_kernels.errors import SystemFailed, UsageError, require
from dsr_kernels.training import placement
from dsr_kernels.training.compare import against_dense
from dsr_kernels.training.data import sets as datasets
from dsr_kernels.training.data.limits import ADVICE, enough_memory, out_of_memory
from dsr_kernels.training.loop import Trainer
from dsr_kernels.training.placement import find_device
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.schema import Recipe
from dsr_kernels.training.report import page
from dsr_kernels.training.run import records
from dsr_kernels.training.run.checkpoint import Checkpoints
from dsr_kernels.training.run.files import Json
from dsr_kernels.training.run.folder import Run
from dsr_kernels.training.setup import check_batch, describe, model_width


def new_run(recipe: Recipe, out: Path, **options: Any) -> Json:
    """Trains `recipe` into the new folder `out` and returns the results.

    Takes the options of `continue_run`, and raises what it raises.
    """
    # What needs no model is checked before the folder exists, the rest before training begins.
    options["device"] = find_device(options.get("device") or "cpu")
    data = _load_data(recipe, options.get("data_dir"))
    run = Run.create(out, recipe)
    try:
        with run.going_on():
            return _train(run, recipe, data, **options)
    except SystemFailed:  # its message says how to go on
        raise
    except BaseException:
        run.withdraw()
        raise
    finally:
        run.release()


def continue_run(
    folder: Path,
    recipe: Recipe | None = None,
    data_dir: Path | None = None,
    make_report: bool = True,
    device: str | None = None,
    **options: Any,
) -> Json:
    """Continues the run in `folder` from its newest checkpoint, and returns the results.

    A finished run does not train on: its report is written again. It is compared with its dense
    twin if `compare_dense` asks for that. A `recipe`, where given, must equal the run's own.
    `data_dir`, `device` and `threads` default to what the run began with.

    Raises:
        UsageError: the run, the recipe, the data or an option is wrong, or a file is damaged.
        Interrupted: a signal stopped training; a checkpoint is saved.
        TrainingStopped: the loss or a weight is not finite.
        SystemFailed: the disk is full or refuses, or memory runs out.
    """
    run = Run.open(folder)
    try:
        with run.going_on():
            return _continue(run, recipe, data_dir, make_report, device, **options)
    finally:
        run.release()


def _continue(
    run: Run,
    recipe: Recipe | None,
    data_dir: Path | None,
    make_report: bool,
    device: str | None,
    **options: Any,
) -> Json:
    """`continue_run`, whose arguments these are."""
    own = run.recipe()
    if recipe is not None and (found := recipes.difference(own, recipe)):
        raise UsageError(f"--resume: the run has another recipe: {found}")
    results = run.read_json("results.json")
    if results is not None:
        saved = Checkpoints(run.folder / "checkpoints").load_latest()
        if saved is not None:
            records.check(run.folder, saved[1])
        print(f"{run.folder} is finished: {_accuracy(results)}")
        if not options.get("compare_dense"):
            if make_report:
                print(f"report: {page.write(run)}")
            return results
    run.lock()
    about = run.read_json("run.json")
    if about is not None:
        data_dir = data_dir or (Path(about["data_dir"]) if about["data_dir"] else None)
        threads = about["machine"]["threads"]
        if options.get("threads") not in (None, threads):
            print(
                f"the run began with {threads} threads. With another number torch's own layers "
                "round differently, so the results will not be bit-identical"
            )
        options.setdefault("threads", threads)
    options |= {"data_dir": data_dir, "make_report": make_report}
    options["device"] = _device_to_continue_on(device, about["machine"] if about else {})
    data = _load_data(own, data_dir)
    if results is not None:
        chosen = {key: options.get(key) for key in ("threads", "device")}
        return _compare(run, own, data, results, make_report=make_report, **chosen)
    return _train(run, own, data, **options)


def _device_to_continue_on(name: str | None, machine: Json) -> torch.device:
    """The device `name`, or the one the run began on; says so where the two differ."""
    began = machine.get("device", "cpu")
    device = find_device(name or began)
    if machine and device_facts(device).get("gpu") != machine.get("gpu"):
        print(
            f"the run began on {machine.get('gpu', 'the CPU')}. Another device rounds differently, "
            "so the results will not be bit-identical"
        )
    return device


def _compare(
    run: Run,
    recipe: Recipe,
    data: datasets.DataSet,
    results: Json,
    *,
    threads: int | None,
    device: torch.device,
    make_report: bool,
) -> Json:
    """Times a finished run's weights beside its dense twin; returns the results with the times."""
    if threads is not None:
        torch.set_num_threads(threads)
    placement.use(device)
    trainer = Trainer(run, recipe, data, device=device)
    if trainer.load_weights() is None:
        raise UsageError(f"--compare-dense: {run.folder} has no checkpoint with its final weights")
    results["against_dense"] = against_dense(trainer)
    run.write_json("results.json", results)
    _print_speeds(results)
    if make_report:
        print(f"report: {page.write(run)}")
    return results


def _print_speeds(results: Json) -> None:
    speeds = results["against_dense"]["images_per_second"].items()
    print("training steps: " + ", ".join(f"{k} {v:,.0f} images/s" for k, v in speeds))


def _load_data(recipe: Recipe, data_dir: Path | None) -> datasets.DataSet:
    check_processor()
    require("safetensors", "dsr train")
    with enough_memory("reading the data set"):
        return datasets.load(recipe.data, data_dir)


def _train(
    run: Run,
    recipe: Recipe,
    data: datasets.DataSet,
    *,
    data_dir: Path | None = None,
    compare_dense: bool = False,
    quiet: bool | None = None,
    make_report: bool = True,
    threads: int | None = None,
    device: torch.device = placement.CPU,
) -> Json:
    """Trains `run` from its newest checkpoint or its beginning; writes and returns the results."""
    if threads is not None:
        torch.set_num_threads(threads)
    placement.use(device)
    check_batch(recipe, data)
    with enough_memory("building the model"):
        trainer = Trainer(run, recipe, data, quiet, device)
        try:
            trainer.start()
            results = _to_the_end(trainer, data_dir)
        finally:
            if trainer.records is not None:
                trainer.records.close()
    results["model"] = _describe_model(trainer)
    results["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if device.type == "cuda":
        results["peak_gpu_mib"] = torch.cuda.max_memory_allocated(device) // 2**20
    if compare_dense:
        results["against_dense"] = against_dense(trainer)
    run.write_json("results.json", results)
    print(f"{_accuracy(results)} on {results['test_images']} images")
    if compare_dense:
        _print_speeds(results)
    if make_report:
        print(f"report: {page.write(run)}")
    return results


def _to_the_end(trainer: Trainer, data_dir: Path | None) -> Json:
    """Writes run.json, says what is trained, and trains; returns what training found.

    Raises SystemFailed where memory runs out.
    """
    run, data, model = trainer.run, trainer.data, _describe_model(trainer)
    if run.read_json("run.json") is None:
        about = {
            "data_dir": data_dir and str(data_dir.resolve()),
            "machine": machine(trainer.device),
            "command": sys.argv[1:],
            "images": _counts(data),
            "model": model,
        }
        if trainer.origin is not None:
            about["start"] = trainer.origin
        run.write_json("run.json", about)
    _announce(trainer.recipe, data, model, trainer)
    try:
        return trainer.train()
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise SystemFailed(
            f"out of memory after iteration {trainer.position.iteration}; {run.kept()}; {ADVICE}: "
            "begin a run with smaller ones"
        ) from None


def _describe_model(trainer: Trainer) -> Json:
    """Parameters and bytes of the model as it is now."""
    width = model_width(trainer.recipe, trainer.data)
    return {**describe(trainer.model, trainer.optimizer), "width": width}


def _accuracy(results: Json) -> str:
    top5 = f" (top-5 {results['test_top5']:.2%})" if "test_top5" in results else ""
    return f"test accuracy {results['test_accuracy']:.2%}{top5}"


def _counts(data: datasets.DataSet) -> dict[str, int]:
    validation = 0 if data.validation is None else len(data.validation)
    return {"train": len(data.train), "validation": validation, "test": len(data.test)}


def _announce(recipe: Recipe, data: datasets.DataSet, model: Json, trainer: Trainer) -> None:
    """Prints what is about to be trained."""
    counts = _counts(data)
    print(
        f"{recipe.name}: {recipe.method}, {recipe.training.epochs} epochs on "
        f"{counts['train']} images ({counts['validation']} validation, {counts['test']} test)"
    )
    if model["layers"]:
        print(
            f"{model['nonzeros']:,} non-zeros in {len(model['layers'])} sparse layers of "
            f"{model['sparse_positions']:,} positions, {model['dense_parameters']:,} dense "
            f"parameters; {torch.get_num_threads()} threads, {trainer.device}"
        )
    else:
        print(
            f"dense, width {model['width']:g}: {model['learnable']:,} parameters; "
            f"{torch.get_num_threads()} threads, {trainer.device}"
        )
    if trainer.position.iteration:
        print(f"continuing after iteration {trainer.position.iteration}", flush=True)
