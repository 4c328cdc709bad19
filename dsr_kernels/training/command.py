"""``dsr train``: from its options to a run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from dsr_kernels import text_table
from dsr_kernels.errors import UsageError, check_threads
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.schema import Recipe
from dsr_kernels.training.run.folder import Run


def run(options: argparse.Namespace) -> int:
    """What the command does; its options are those of `cli`."""
    if options.list:
        rows = [(name, recipes.load(name).description) for name in recipes.names()]
        print("\n".join(text_table.columns(rows, left=(0, 1))))
        return 0
    try:
        folder, recipe = _what_to_train(options)
        check_threads(options.threads)
    except UsageError as error:
        if "RANK" not in os.environ:
            raise
        from dsr_kernels.training.joining import end_together

        end_together(error)  # as other processes of torchrun may meet the same
    given = {
        "data_dir": options.data_dir,
        "compare_dense": options.compare_dense,
        "quiet": options.quiet or None,
        "make_report": not options.no_report,
        "device": options.device,
    }
    if options.threads is not None:
        given["threads"] = options.threads
    from dsr_kernels.training import start  # as late as this: --list need not wait for it

    if options.resume:
        start.continue_run(folder, recipe, **given)
    else:
        start.new_run(recipe, folder, **given)
    return 0


def _what_to_train(options: argparse.Namespace) -> tuple[Path, Recipe]:
    """The folder of the run and its recipe."""
    folder = _folder(options)
    overrides = list(options.overrides)
    if options.eval_test_every is not None:
        overrides.append(f"training.eval_test_every={options.eval_test_every}")
    if options.resume and not options.recipe:
        if options.epochs is not None:
            raise UsageError("--epochs: the run has its epochs; begin another with --out")
        return folder, Run.open(folder).recipe(overrides, options.seed)
    name = options.recipe or recipes.DEFAULT
    return folder, recipes.load(name, overrides, options.seed, epochs=options.epochs)


def _folder(options: argparse.Namespace) -> Path:
    """The folder of the run, from --out or --resume."""
    if not options.resume:
        if options.out is None:
            raise UsageError("--out: expected the folder of the run, such as --out runs/first")
        return options.out
    folder = options.out if options.resume is True else options.resume
    if folder is None or (options.out and options.out != folder):
        raise UsageError("--resume: expected one run, as --resume RUN or --out RUN --resume")
    return Run.open(folder).folder
