"""Starts or continues a run: the steps around the training loop, in the order a user sees them."""

from __future__ import annotations

import functools
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dsr_kernels.environment import check_processor, device_facts, machine
from dsr_kernels.errors import Interrupted, SystemFailed, UsageError, require_all
from dsr_kernels.training import placement
from dsr_kernels.training.announce import accuracy, announce, counts, print_speeds, say_rounding
from dsr_kernels.training.compare import against_dense
from dsr_kernels.training.data import sets as datasets
from dsr_kernels.training.data.limits import ADVICE, enough_memory, out_of_memory
from dsr_kernels.training.export import input_facts
from dsr_kernels.training.joining import end_together, joined
from dsr_kernels.training.loop import Trainer
from dsr_kernels.training.placement import find_device
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.schema import DATA_SETS, Recipe
from dsr_kernels.training.report import page
from dsr_kernels.training.run import records
from dsr_kernels.training.run.checkpoint import Checkpoints
from dsr_kernels.training.run.files import Json
from dsr_kernels.training.run.folder import Run
from dsr_kernels.training.setup import check_batch, describe, model_width
from dsr_kernels.training.world import World
from dsr_kernels.version import version

LOCK_PATIENCE = 30.0  # seconds at most: workers of a killed process hold its lock for a while


def new_run(recipe: Recipe, out: Path, **options: Any) -> Json:
    """Trains `recipe` into the new folder `out` and returns the results.

    Takes the options of `continue_run`, and raises what it raises. Where torchrun starts its
    command again after a failure, the run goes on that its first try has begun in `out`.
    """
    with joined(recipe.distributed) as world:
        _check_alike(world, recipe, out, options)
        if world.first_says(Run.is_of(world.job, out)):
            return _open(world, out, recipe, **options)
        return _begin(world, recipe, out, **options)


def _begin(world: World, recipe: Recipe, out: Path, **options: Any) -> Json:
    # What needs no model is checked before the folder exists, the rest before training begins.
    device = find_device(world.device_name(options.get("device") or "cpu"))
    world.check(recipe, device, options)
    data = _load_data(world, recipe, options.get("data_dir"))
    run = world.run = Run.create(out, recipe, world.job) if world.is_first else Run(out)
    try:
        world.wait()  # for the folder
        with run.going_on():
            return _train(world, run, recipe, data, **{**options, "device": device})
    except BaseException as error:
        ending = world.ending(error)
        says_go_on = SystemFailed | Interrupted
        if not isinstance(getattr(ending, "error", ending), says_go_on):
            run.withdraw()
        if ending is error:
            raise
        raise ending from None
    finally:
        run.release()


def continue_run(folder: Path, recipe: Recipe | None = None, **options: Any) -> Json:
    """Continues the run in `folder` from its newest checkpoint, and returns the results.

    A finished run does not train on: its report is written again. It is compared with its dense
    twin if `compare_dense` asks for that. A `recipe`, where given, must equal the run's own.
    `data_dir`, `device` and `threads` default to what the run began with. Each process that
    torchrun has started makes this call.

    Raises:
        UsageError: the run, the recipe, the data or an option is wrong, or a file is damaged.
        Interrupted: a signal stopped training; a checkpoint is saved.
        TrainingStopped: the loss or a weight is not finite.
        SystemFailed: the disk is full or refuses, memory runs out, or a process is lost.
        SaidElsewhere: all processes end, and the first one says why.
    """
    try:
        own = Run.open(folder).recipe()
    except UsageError as error:
        end_together(error)
    with joined((recipe or own).distributed) as world:
        _check_alike(world, recipe or own, folder, options, resumes=True)
        return _open(world, folder, recipe, **options)


def _open(world: World, folder: Path, recipe: Recipe | None, **options: Any) -> Json:
    run = world.run = Run.open(folder)
    try:
        with run.going_on():
            return _continue(world, run, recipe, **options)
    finally:
        run.release()


def _continue(
    world: World,
    run: Run,
    recipe: Recipe | None,
    data_dir: Path | None = None,
    make_report: bool = True,
    device: str | None = None,
    **options: Any,
) -> Json:
    """`continue_run`, whose arguments these are."""
    own = run.recipe()
    if recipe is not None and (found := recipes.difference(own, recipe)):
        raise UsageError(f"--resume: the run has another recipe: {found}")
    own = recipes.with_free_settings(own, recipe)
    results = run.read_json("results.json")
    if results is not None:
        saved = Checkpoints(run.folder / "checkpoints").load_latest()
        if saved is not None:
            records.check(run.folder, saved[1])
        print(f"{run.folder} is finished: {accuracy(results)}")
        if not options.get("compare_dense"):
            if make_report and world.is_first:
                print(f"report: {page.write(run)}")
            return results
    if world.is_first:
        again = world.restarts or Run.is_of(world.job, run.folder)
        # The other processes wait, too.
        run.lock(min(LOCK_PATIENCE, own.distributed.timeout_seconds / 2) if again else 0.0)
    about = run.read_json("run.json")
    if about is not None:
        data_dir = data_dir or (Path(about["data_dir"]) if about["data_dir"] else None)
        say_rounding(about["machine"], options.get("threads"))
        options.setdefault("threads", about["machine"]["threads"])
    options |= {"data_dir": data_dir, "make_report": make_report}
    machine = about["machine"] if about else {}
    options["device"] = _device_to_continue_on(world, device, machine)
    world.check(own, options["device"], options)
    data = _load_data(world, own, data_dir)
    if results is not None:
        chosen = {key: options.get(key) for key in ("threads", "device")}
        return _compare(run, own, data, results, make_report=make_report, **chosen)
    return _train(world, run, own, data, **options)


def _check_alike(
    world: World, recipe: Recipe, folder: Path, options: Mapping[str, Any], resumes: bool = False
) -> None:
    """Raises UsageError, in all processes, where they have other versions, recipes or arguments."""
    versions = {"dsr_kernels": version(), "torch": torch.__version__}
    world.check_same({f"version of {name}": number for name, number in versions.items()})
    world.check_same({"--resume": resumes, "folder of the run": str(folder.absolute())})
    names = ("device", "compare_dense")
    world.check_same({f"--{name.replace('_', '-')}": options.get(name) for name in names})
    world.check_same({f"recipe: {key}": value for key, value in recipes.values(recipe).items()})


def _device_to_continue_on(world: World, name: str | None, machine: Json) -> torch.device:
    """The device `name`, or the one the run began on; says so where the two differ."""
    began = machine.get("device", "cpu")
    if world.size > 1:
        began = began.partition(":")[0]
    device = find_device(world.device_name(name or began))
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
    print_speeds(results)
    if make_report:
        print(f"report: {page.write(run)}")
    return results


def _load_data(world: World, recipe: Recipe, data_dir: Path | None) -> datasets.DataSet:
    check_processor()
    from_sklearn = ["sklearn.datasets"] if recipe.data.name == "digits" else []
    require_all(["safetensors", *from_sklearn], "dsr train")
    with enough_memory("reading the data set"):
        load = functools.partial(datasets.load, recipe.data, data_dir)
        # What is not ours may download or unpack: processes at once would write the same files.
        data = load() if recipe.data.name in DATA_SETS else world.in_turns(load)
    world.check_same({"the data set": data.fingerprint()})
    return data


def _train(
    world: World,
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
        trainer = Trainer(run, recipe, data, quiet, device, world)
        failed = True
        try:
            trainer.start()
            results = _to_the_end(trainer, data_dir)
            failed = False
        finally:
            if trainer.records is not None:
                trainer.records.close(failed)
    if not world.is_first:
        return results
    results["model"] = _describe_model(trainer)
    results["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if device.type == "cuda":
        results["peak_gpu_mib"] = torch.cuda.max_memory_allocated(device) // 2**20
    if compare_dense:
        results["against_dense"] = against_dense(trainer)
    run.write_json("results.json", results)
    print(f"{accuracy(results)} on {results['test_images']} images")
    if compare_dense:
        print_speeds(results)
    if make_report:
        print(f"report: {page.write(run)}")
    return results


def _to_the_end(trainer: Trainer, data_dir: Path | None) -> Json:
    """Writes run.json, says what is trained, and trains; returns what training found.

    Raises SystemFailed where memory runs out.
    """
    run, data, model = trainer.run, trainer.data, _describe_model(trainer)
    world = trainer.world
    if world.is_first and run.read_json("run.json") is None:
        about = {
            "data_dir": data_dir and str(data_dir.resolve()),
            "machine": machine(trainer.device),
            "command": sys.argv[1:],
            "images": counts(data),
            "input": input_facts(data),
            "model": model,
        }
        if world.size > 1:
            about["processes"] = {"number": world.size, "hosts": world.hosts}
        if trainer.origin is not None:
            about["start"] = trainer.origin
        run.write_json("run.json", about)
    announce(trainer, model)
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
